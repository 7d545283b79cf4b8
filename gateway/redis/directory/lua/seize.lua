#!lua flags=allow-oom
-- Start to reap a dead owner: fence it with a claim, or continue where another reaper stopped.
-- KEYS leases, reaped, claim    ARGV owner, reaper, claim_ttl_ms, hold_ms
-- Returns 1: the caller reaps it, exclusively for hold_ms; 0: the owner is alive, or another node reaps it.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local until_ms = redis.call('ZSCORE', KEYS[1], ARGV[1])
if until_ms then
  if tonumber(until_ms) > now_ms then
    return 0
  end
  if not redis.call('SET', KEYS[3], ARGV[2], 'NX', 'PX', ARGV[3]) then
    return 0
  end
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  local due_ms = redis.call('ZSCORE', KEYS[2], ARGV[1])
  if not due_ms or tonumber(due_ms) > now_ms then
    return 0
  end
end
redis.call('ZADD', KEYS[2], string.format('%d', now_ms + ARGV[4]), ARGV[1])
return 1
