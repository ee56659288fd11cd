-- Remove what has expired, in any channel; who has no entry left leaves the channel.
-- Returns {1 if there may be more of it, else 0, the time in microseconds}.
--
-- ARGV[5]  how many entries to remove at most
-- ARGV[6]  only what had expired by this time, if not 0: this call may have waited for long

local clock, left, limit = time(), tonumber(ARGV[5]), tonumber(ARGV[6])
local now = decimal(limit > 0 and math.min(clock, limit) or clock)
for _, channel in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', 0, left)) do
  local entries = entries_of(channel)
  local expired = redis.call('ZRANGEBYSCORE', entries, '-inf', now, 'LIMIT', 0, left)
  for _, entry in ipairs(expired) do
    local member = member_of(entry)
    redis.call('ZREM', entries, entry)
    if redis.call('HINCRBY', members_of(channel), member, -1) <= 0 then
      redis.call('HDEL', members_of(channel), member)
      announce(channel, 'leave', member)
    end
  end
  schedule(channel)
  left = left - math.max(#expired, 1)
  if left <= 0 then
    return {1, decimal(clock)}
  end
end
return {0, decimal(clock)}
