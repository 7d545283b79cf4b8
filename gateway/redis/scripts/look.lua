#!lua flags=no-writes
-- List owners whose lease has expired, and dead ones that are to be swept again.
-- KEYS leases, reaped    ARGV max
-- Returns {expired, due}.
local time = redis.call('TIME')
local now_ms = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
return {
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms, 'LIMIT', '0', ARGV[1]),
  redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms, 'LIMIT', '0', ARGV[1]),
}
