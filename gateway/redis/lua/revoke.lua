#!lua
-- Add a revocation, remove entries that are older than any valid token can be, and let the whole list expire. The score
-- is higher than all scores before, even if the clock is set back.
-- KEYS revocations    ARGV member, keep_ms
-- Returns the score: milliseconds of Redis' clock.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local keep = tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%d', now - keep))
local top = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if top[2] and tonumber(top[2]) >= now then
  now = tonumber(top[2]) + 1
end
redis.call('ZADD', KEYS[1], string.format('%d', now), ARGV[1])
redis.call('PEXPIRE', KEYS[1], string.format('%d', keep))
return string.format('%d', now)
