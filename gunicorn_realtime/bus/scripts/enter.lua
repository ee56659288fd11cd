-- Say that members are in channels, or still are; who was in none of a channel's entries joins it.
--
-- ARGV[5]    the hub whose entries they are
-- ARGV[6]    for how long, in microseconds
-- ARGV[7...] channel, messages to keep, for how long in microseconds, member, of each

local hub, expiry = ARGV[5], decimal(time() + tonumber(ARGV[6]))
local touched = {}
for n = 7, #ARGV, 4 do
  local channel, member = ARGV[n], ARGV[n + 3]
  redis.call('HSET', rules, channel, ARGV[n + 1] .. ' ' .. ARGV[n + 2])
  local is_new = redis.call('ZADD', entries_of(channel), expiry, member .. '\n' .. hub) == 1
  if is_new and redis.call('HINCRBY', members_of(channel), member, 1) == 1 then
    announce(channel, 'join', member)
  end
  touched[channel] = true
end
for channel in pairs(touched) do
  schedule(channel)
end
