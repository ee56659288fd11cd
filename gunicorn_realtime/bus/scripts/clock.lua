-- Put before each of the scripts here: the clock that gives all messages their order.
--
-- KEYS[1]  the clock, a hash {id, epoch}
-- ARGV[1]  the epoch to begin where one is needed
-- ARGV[2]  epoch and
-- ARGV[3]  id that the caller has seen of this clock already, or "" and 0
--
-- Microseconds are below 2^53, so a Lua number has them exactly.

local function decimal(number)
  return string.format('%.0f', math.max(number, 0))
end

-- Return the epoch, and an id that is at least the server's time and `step` beyond the last.
local function advance(step)
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
  local clock = redis.call('HMGET', KEYS[1], 'id', 'epoch')
  local last, epoch = tonumber(clock[1] or 0), clock[2]
  -- A clock behind what somebody has seen was restored from an older state: messages are lost.
  if not epoch or (epoch == ARGV[2] and last < tonumber(ARGV[3])) then
    epoch = ARGV[1]
    redis.call('HSET', KEYS[1], 'epoch', epoch)
  end
  return epoch, math.max(now, last + step)
end

local function store(id)
  redis.call('HSET', KEYS[1], 'id', decimal(id))
end

local function id_of(entry)
  return string.match(entry[1], '^%d+')
end

-- Return {floor, id, p, b, id, p, b...}: nothing newer than the floor is missing.
local function pack(entries, floor)
  local packed = {floor}
  for _, entry in ipairs(entries) do
    packed[#packed + 1] = id_of(entry)
    packed[#packed + 1] = entry[2][2]
    packed[#packed + 1] = entry[2][4]
  end
  return packed
end
