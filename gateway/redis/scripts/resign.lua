#!lua flags=allow-oom
-- Give a lease up. What is still owned under it is left to a reaper, by a lease that has expired.
-- KEYS leases    ARGV owner, "1" if nothing is owned
if ARGV[2] == '1' then
  return redis.call('ZREM', KEYS[1], ARGV[1])
end
return redis.call('ZADD', KEYS[1], 'XX', '0', ARGV[1])
