-- Read the clock and the messages of logs after an id, all at one moment.
-- Returns {epoch, id, log...}, each log as `pack` makes it, in ascending order.
--
-- KEYS[2...]  logs
-- ARGV[4]     the id
-- ARGV[5]     how many messages of each log at most
-- ARGV[6...]  each log's ttl in microseconds

local epoch, id = advance(0)
store(id)
local after = ARGV[4]
local first = decimal(tonumber(after) + 1)
local reply = {epoch, decimal(id)}
for index = 2, #KEYS do
  local log, ttl = KEYS[index], tonumber(ARGV[index + 4])
  local entries = redis.call('XRANGE', log, first, '+', 'COUNT', ARGV[5])
  local floor
  if entries[1] then
    floor = entries[1][2][2]
  elseif redis.call('EXISTS', log) == 1 then
    floor = after
  else
    floor = decimal(id - ttl)
  end
  reply[#reply + 1] = pack(entries, floor)
end
return reply
