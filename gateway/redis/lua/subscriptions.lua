#!lua
-- List the subscriptions of an identity, and remove those that have expired.
-- KEYS subscriptions    ARGV the lifetime of an unused key in ms
-- Returns {field, value, ms until it expires or 0...}.
local words = redis.call('HGETALL', KEYS[1])
if #words == 0 then
  return words
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = {}
for at = 1, #words, 2 do
  local expires, value = string.match(words[at + 1], '^(%d+) (.*)$')
  expires = tonumber(expires)
  if expires > 0 and expires <= now then
    redis.call('HDEL', KEYS[1], words[at])
  else
    found[#found + 1] = words[at]
    found[#found + 1] = value
    found[#found + 1] = expires == 0 and 0 or expires - now
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return found
