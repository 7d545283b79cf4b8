#!lua
-- Store a control order, and remove those that are no longer kept, except the newest one: its number is needed. The
-- numbers of orders are consecutive. An order from long after now was stored before Redis' clock was set back.
-- KEYS orders, leases, announced: nodes wait for its only entry
-- ARGV order id, order: JSON, keep_ms, the largest number of orders, the lifetime of the list in ms without new orders
-- Returns {number, {NODE:INCARNATION that has a lease, or had one that no reaper removed yet...}}; number 0: full.
local time = redis.call('TIME')
local now, keep = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[3])
local function number(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', '1')[1]
local last = newest and number(newest) or 0
local first
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', '100')) do
  first = number(entry)
  local at = tonumber(entry[2][4])
  if math.abs(now - at) <= keep then
    break
  end
end
if first then
  redis.call('XTRIM', KEYS[1], 'MINID', string.format('%d-0', first))
  if last - first + 1 >= tonumber(ARGV[4]) then
    return {0, {}}
  end
end
redis.call('XADD', KEYS[1], string.format('%d-0', last + 1), 'id', ARGV[1], 'at', string.format('%d', now), 'order', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('XADD', KEYS[3], 'MAXLEN', '1', '*', 'id', ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
return {last + 1, redis.call('ZRANGE', KEYS[2], '0', '-1')}
