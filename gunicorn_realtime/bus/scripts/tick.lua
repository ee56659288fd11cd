-- Advance the clock and publish its id: who receives it has received all that was published before.
-- Returns {epoch, id}.
--
-- ARGV[4]  channel

local epoch, id = advance(1)
store(id)
redis.call('PUBLISH', ARGV[4], epoch .. ' ' .. decimal(id))
return {epoch, decimal(id)}
