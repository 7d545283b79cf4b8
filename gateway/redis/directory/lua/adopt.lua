#!lua flags=allow-oom
-- Make owners without a lease visible to reapers: each gets an expired lease. A living owner renews it long before it
-- is reaped. Owners that were reaped before are swept again now.
-- KEYS leases, reaped    ARGV owners
-- Returns the number of owners without a lease.
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local count = 0
for _, owner in ipairs(ARGV) do
  if not redis.call('ZSCORE', KEYS[1], owner) then
    count = count + 1
    if redis.call('ZSCORE', KEYS[2], owner) then
      redis.call('ZADD', KEYS[2], 'XX', now, owner)
    else
      redis.call('ZADD', KEYS[1], '0', owner)
    end
  end
end
return count
