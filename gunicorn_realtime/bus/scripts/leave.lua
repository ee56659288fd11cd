-- Let a hub's entries expire soon, unless they are entered again.
--
-- ARGV[5]    the hub
-- ARGV[6]    when, in microseconds from now
-- ARGV[7...] channel, member, of each

local hub, expiry = ARGV[5], decimal(time() + tonumber(ARGV[6]))
local touched = {}
for n = 7, #ARGV, 2 do
  redis.call('ZADD', entries_of(ARGV[n]), 'XX', expiry, ARGV[n + 1] .. '\n' .. hub)
  touched[ARGV[n]] = true
end
for channel in pairs(touched) do
  schedule(channel)
end
