-- Put before the scripts that know who is there.
--
-- ARGV[4]  the site's prefix, without which channels are named here
--
-- Which channels are due is only known in here, so keys are made of the prefix:
--
-- rt:present              channels, by the time when the next of their entries expires
-- rt:present:rules        for each of them "<messages to keep> <for how long, in microseconds>"
-- rt:entries:<channel>    "<member> LF <hub>", by the time when it expires
-- rt:members:<channel>    how many entries each member has
--
-- A member is written as JSON, in which there is no line break.

local prefix = ARGV[4]
local index, rules = prefix .. 'rt:present', prefix .. 'rt:present:rules'

local function entries_of(channel)
  return prefix .. 'rt:entries:' .. channel
end

local function members_of(channel)
  return prefix .. 'rt:members:' .. channel
end

local function member_of(entry)
  return string.match(entry, '^[^\n]*')
end

-- Not the clock of messages, which may be ahead of the time.
local function time()
  local now = redis.call('TIME')
  return tonumber(now[1]) * 1000000 + tonumber(now[2])
end

-- Note when something in a channel expires next, or forget the channel.
local function schedule(channel)
  local first = redis.call('ZRANGE', entries_of(channel), 0, 0, 'WITHSCORES')
  if first[2] then
    redis.call('ZADD', index, decimal(tonumber(first[2])), channel)
  else
    redis.call('ZREM', index, channel)
    redis.call('HDEL', rules, channel)
    redis.call('DEL', members_of(channel))
  end
end

-- Publish that a member joins or leaves, as any message of the channel.
local function announce(channel, kind, member)
  local count, ttl = string.match(redis.call('HGET', rules, channel) or '0 0', '(%d+) (%d+)')
  local body = '{"event": "presence"}\n{"type":"' .. kind .. '","member":' .. member .. '}'
  if count == '0' then
    redis.call('PUBLISH', prefix .. channel, '\255RT1\n' .. body)
  else
    local epoch, id = advance(1)
    append(epoch, id, prefix .. 'rt:log:' .. channel, prefix .. channel, body, '', count, tonumber(ttl))
  end
end
