-- Put before the scripts that publish messages with history.

-- Keep a message as the newest of its log and publish it; `epoch` and `id` are those of advance(1).
-- Returns {epoch, id}.
local function append(epoch, id, log, channel, body, token, count, ttl)
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local previous = decimal(id - ttl) -- without a log: nothing newer than that can have expired
  if last then
    previous = id_of(last)
    id = math.max(id, tonumber(previous) + 1) -- the clock may have been deleted, and the time set back
  end
  store(id)
  redis.call('XADD', log, 'MAXLEN', '~', count, decimal(id) .. '-0', 'p', previous, 'b', body, 't', token)
  redis.call('PEXPIREAT', log, decimal(math.ceil((id + ttl) / 1000)))
  redis.call('PUBLISH', channel, '\255RT1' .. epoch .. ' ' .. decimal(id) .. ' ' .. previous .. '\n' .. body)
  return {epoch, decimal(id)}
end
