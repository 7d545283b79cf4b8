#!lua
-- Return the generation of a channel; start one if it has none.
-- KEYS generation    ARGV the new one, the lifetime of an unused key in ms
local found = redis.call('GET', KEYS[1])
if not found then
  found = ARGV[1]
  redis.call('SET', KEYS[1], found)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return found
