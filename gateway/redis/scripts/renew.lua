#!lua flags=allow-oom
-- Renew a node's lease, also one that has expired: only a reaper's claim ends it.
-- No lease ends, and no dead owner is due, later than one that is given now: such a time is from before the clock was set
-- back, and who died then would stay for as long.
-- KEYS leases, claim, reaped    ARGV owner, ttl_ms, sweep_ms: the longest time until a dead owner is due
-- Returns "held", "new" (Redis did not know of it) or "fenced".
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 'fenced'
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local function bound(key, latest_ms)
  local latest = string.format('%d', latest_ms)
  for _, owner in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. latest, '+inf', 'LIMIT', '0', '100')) do
    redis.call('ZADD', key, 'XX', latest, owner)
  end
end
local until_ms = now_ms + ARGV[2]
bound(KEYS[1], until_ms)
bound(KEYS[3], now_ms + ARGV[3])
if redis.call('ZADD', KEYS[1], string.format('%d', until_ms), ARGV[1]) == 1 then
  return 'new'
end
return 'held'
