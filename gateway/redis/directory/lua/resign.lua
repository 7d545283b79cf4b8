#!lua flags=allow-oom
-- Give up a lease. If something is still owned under it, the lease is marked as expired, so that a reaper releases it.
-- KEYS leases    ARGV owner, "1" if nothing is owned
if ARGV[2] == '1' then
  return redis.call('ZREM', KEYS[1], ARGV[1])
end
return redis.call('ZADD', KEYS[1], 'XX', '0', ARGV[1])
