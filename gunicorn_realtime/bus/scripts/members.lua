-- Return a channel's members, each once, whether what has expired was swept or not.
--
-- ARGV[5]  channel

local members, seen = {}, {}
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', entries_of(ARGV[5]), '(' .. decimal(time()), '+inf')) do
  local member = member_of(entry)
  if not seen[member] then
    seen[member] = true
    members[#members + 1] = member
  end
end
return members
