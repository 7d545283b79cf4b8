#!lua flags=allow-oom
-- Give up a lease, and remove the node's state. If something is still owned under the lease, it is marked as expired, so
-- that a reaper releases it.
-- KEYS leases, nodes, state of this node    ARGV owner, "1" if nothing is owned, node id
redis.pcall('SREM', KEYS[2], ARGV[3])
redis.pcall('DEL', KEYS[3])
if ARGV[2] == '1' then
  return redis.call('ZREM', KEYS[1], ARGV[1])
end
return redis.call('ZADD', KEYS[1], 'XX', '0', ARGV[1])
