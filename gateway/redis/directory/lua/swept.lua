#!lua flags=allow-oom
-- Record that a dead owner was swept. Late writes are possible until its claim expires.
-- KEYS reaped, claim    ARGV owner, pause_ms
-- Returns 1: it will be swept again after pause_ms; 0: its claim has expired and it was removed from the list.
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return 0
end
local time = redis.call('TIME')
local due_ms = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]
redis.call('ZADD', KEYS[1], 'XX', string.format('%d', due_ms), ARGV[1])
return 1
