-- Read the clock and the newest messages of logs, all at one moment: no later message has an id
-- up to the clock's. Returns {epoch, id, log...}, each log as `pack` makes it, in ascending order.
--
-- KEYS[2...]  logs
-- ARGV[4...]  for each log how many messages, and its ttl in microseconds

local epoch, id = advance(0)
store(id)
local reply = {epoch, decimal(id)}
for index = 2, #KEYS do
  local count, ttl = ARGV[index * 2], tonumber(ARGV[index * 2 + 1])
  local newest = redis.call('XREVRANGE', KEYS[index], '+', '-', 'COUNT', count)
  local entries = {}
  for position = #newest, 1, -1 do
    entries[#entries + 1] = newest[position]
  end
  reply[#reply + 1] = pack(entries, entries[1] and entries[1][2][2] or decimal(id - ttl))
end
return reply
