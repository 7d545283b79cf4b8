#!lua
-- Remove subscriptions of an identity whose channel has ended, unless they were stored again meanwhile.
-- KEYS subscriptions    ARGV field and value, as `subscriptions` returned them, of each
for at = 1, #ARGV, 2 do
  local words = redis.call('HGET', KEYS[1], ARGV[at])
  if words and string.match(words, '^%d+ (.*)$') == ARGV[at + 1] then
    redis.call('HDEL', KEYS[1], ARGV[at])
  end
end
return 1
