#!lua flags=allow-oom
-- Note that a dead owner was swept; late writes may come as long as its claim stands.
-- KEYS reaped, claim    ARGV owner, pause_ms
-- Returns 1: it is to be swept again; 0: it is forgotten.
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return 0
end
local time = redis.call('TIME')
local due_ms = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]
redis.call('ZADD', KEYS[1], 'XX', string.format('%d', due_ms), ARGV[1])
return 1
