#!lua
-- Recount the bytes of a roster, because nodes of an earlier version change it without counting.
-- KEYS roster, counts    ARGV seconds: at most one recount in this time
-- Returns 1: recounted; 0: there is no such roster, or it was recounted recently.
local now = tonumber(redis.call('TIME')[1])
local since = now - tonumber(redis.call('HGET', KEYS[2], 'w') or '0')
if redis.call('EXISTS', KEYS[1]) == 0 or (since >= 0 and since < tonumber(ARGV[1])) then
  return 0
end
local bytes = 0
for _, word in ipairs(redis.call('HGETALL', KEYS[1])) do
  bytes = bytes + #word
end
redis.call('HSET', KEYS[2], 'b', string.format('%d', bytes), 'w', string.format('%d', now))
return 1
