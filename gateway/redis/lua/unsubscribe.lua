#!lua
-- Remove a subscription of an identity, or all whose fields have a prefix.
-- KEYS subscriptions    ARGV field, or '' and the prefix
if ARGV[1] ~= '' then
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
local count = 0
local words = redis.call('HGETALL', KEYS[1])
for at = 1, #words, 2 do
  if string.sub(words[at], 1, #ARGV[2]) == ARGV[2] then
    count = count + redis.call('HDEL', KEYS[1], words[at])
  end
end
return count
