#!lua
-- Store a subscription of an identity, and remove those that have expired.
-- KEYS subscriptions
-- ARGV field, value, its lifetime in ms or 0, the largest number of fields, the lifetime of an unused key in ms
-- Returns 1; 0: there are too many.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local count, is_new = 0, true
local words = redis.call('HGETALL', KEYS[1])
for at = 1, #words, 2 do
  local expires = tonumber(string.match(words[at + 1], '^%d+'))
  if words[at] == ARGV[1] then
    is_new = false
  elseif expires > 0 and expires <= now then
    redis.call('HDEL', KEYS[1], words[at])
  else
    count = count + 1
  end
end
if is_new and count >= tonumber(ARGV[4]) then
  return 0
end
local within = tonumber(ARGV[3])
local expires = within == 0 and 0 or now + within
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d ', expires) .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
