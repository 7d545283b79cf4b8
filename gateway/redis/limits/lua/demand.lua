#!lua flags=allow-oom
-- Report what clients of one node ask for, in place of its last report; it expires. Return what the other nodes reported.
-- KEYS demands of this node, demands of each other node    ARGV ttl_ms, then for each name: name, demand per second
-- Returns the sums of the other nodes' demands, in the order of the names: texts.
redis.call('DEL', KEYS[1])
local sums = {}
for at = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  local sum = 0
  for other = 2, #KEYS do
    sum = sum + tonumber(redis.call('HGET', KEYS[other], ARGV[at]) or 0)
  end
  sums[#sums + 1] = string.format('%.3f', sum)
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return sums
