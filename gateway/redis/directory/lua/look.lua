#!lua flags=no-writes
-- List owners whose lease has expired or will expire soon, and dead owners that must be swept again.
-- KEYS leases, reaped    ARGV max, ahead_ms: "soon" means within this time
-- Returns {{owner, milliseconds since its lease expired (negative: until it expires), ...}, owners to sweep}.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local soon_ms = string.format('%d', now_ms + ARGV[2])
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', soon_ms, 'WITHSCORES', 'LIMIT', '0', ARGV[1])
for at = 2, #expired, 2 do
  expired[at] = now_ms - expired[at]
end
return {
  expired,
  redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%d', now_ms), 'LIMIT', '0', ARGV[1]),
}
