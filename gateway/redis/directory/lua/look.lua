#!lua flags=no-writes
-- List owners whose lease has expired or will expire soon, and dead owners that must be swept again now or soon.
-- KEYS leases, reaped    ARGV max, ahead_ms: "soon" means within this time
-- Returns {{owner, milliseconds since its lease expired (negative: until it expires), ...}, {owner to sweep, milliseconds
-- since it is due (negative: until then), ...}}.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local soon_ms = string.format('%d', now_ms + ARGV[2])
local function until_soon(key)
  local found = redis.call('ZRANGEBYSCORE', key, '-inf', soon_ms, 'WITHSCORES', 'LIMIT', '0', ARGV[1])
  for at = 2, #found, 2 do
    found[at] = now_ms - found[at]
  end
  return found
end
return {until_soon(KEYS[1]), until_soon(KEYS[2])}
