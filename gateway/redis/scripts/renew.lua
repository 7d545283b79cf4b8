#!lua flags=allow-oom
-- Renew a node's lease, also one that has expired: only a reaper's claim ends it.
-- KEYS leases, claim    ARGV owner, ttl_ms
-- Returns "held", "new" (Redis did not know of it) or "fenced".
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 'fenced'
end
local time = redis.call('TIME')
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]
if redis.call('ZADD', KEYS[1], string.format('%d', until_ms), ARGV[1]) == 1 then
  return 'new'
end
return 'held'
