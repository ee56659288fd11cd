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

local log, token = KEYS[2], ARGV[6]
local epoch, id = advance(1)

if ARGV[9] == 'retry' then
  for _, entry in ipairs(redis.call('XREVRANGE', log, '+', decimal(id - tonumber(ARGV[10])))) do
    if entry[2][6] == token then
      return {epoch, id_of(entry)}
    end
  end
end

return append(epoch, id, log, ARGV[4], ARGV[5], token, ARGV[7], tonumber(ARGV[8]))
