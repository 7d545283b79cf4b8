#!lua
-- Find entries of a roster that are missing, and rebuild its counts if they are missing: Redis may have evicted either.
-- KEYS roster, counts    ARGV fields
-- Returns {1 if the counts were missing, else 0; then for each field 1 if it is missing, else 0}.
local answer = {0}
for at = 1, #ARGV do
  answer[at + 1] = redis.call('HGET', KEYS[1], ARGV[at]) and 0 or 1
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  local words = redis.call('HGETALL', KEYS[1])
  local bytes = 0
  for at = 1, #words, 2 do
    local value = words[at + 1]
    local colon = string.find(value, ':', 1, true)
    local identity = string.sub(value, colon + 1, colon + tonumber(string.sub(value, 1, colon - 1)))
    redis.call('HINCRBY', KEYS[2], 'i' .. identity, '1')
    bytes = bytes + #words[at] + #value
  end
  if #words > 0 then
    local time = redis.call('TIME')
    local version = string.format('%d', time[1] * 1000000 + time[2])
    redis.call('HSET', KEYS[2], 'b', string.format('%d', bytes), 'v', version)
    answer[1] = 1
  end
end
return answer
