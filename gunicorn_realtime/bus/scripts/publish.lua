-- Give a message its id, keep it and publish it, in one step: so ids, log and delivery have one order.
-- Returns {epoch, id}.
--
-- KEYS[2]  the channel's log, a stream of p (id of the previous message), b (body), t (token)
-- ARGV[4]  channel
-- ARGV[5]  body: header LF data
-- ARGV[6]  token, the publisher's own name of this message
-- ARGV[7]  how many messages to keep
-- ARGV[8]  for how long, in microseconds
-- ARGV[9]  "retry" if this message may be in the log already
-- ARGV[10] ... and since when: so many microseconds ago at most

local log, token, ttl = KEYS[2], ARGV[6], tonumber(ARGV[8])
local epoch, id = advance(1)

if ARGV[9] == 'retry' then
  for _, entry in ipairs(redis.call('XREVRANGE', log, '+', decimal(id - tonumber(ARGV[10])))) do
    if entry[2][6] == token then
      return {epoch, id_of(entry)}
    end
  end
end

local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
local previous = decimal(id - ttl) -- without a log: nothing newer than that can have expired
if last then
  previous = id_of(last)
  id = math.max(id, tonumber(previous) + 1) -- the clock may have been deleted, and the time set back
end

store(id)
redis.call('XADD', log, 'MAXLEN', '~', ARGV[7], decimal(id) .. '-0', 'p', previous, 'b', ARGV[5], 't', token)
redis.call('PEXPIREAT', log, decimal(math.ceil((id + ttl) / 1000)))
redis.call('PUBLISH', ARGV[4], '\255RT1' .. epoch .. ' ' .. decimal(id) .. ' ' .. previous .. '\n' .. ARGV[5])
return {epoch, decimal(id)}
