#!lua flags=allow-oom
-- Take a token's value, once. Because the reply may be lost, the same taker can take it again within retry_ms.
-- KEYS token, taken    ARGV taker, retry_ms
-- Returns the value, or false: there is none, or another taker has it.
local taken = redis.call('GET', KEYS[2])
if taken then
  local blank = string.find(taken, ' ', 1, true)
  if string.sub(taken, 1, blank - 1) == ARGV[1] then
    return string.sub(taken, blank + 1)
  end
  return false
end
local value = redis.call('GET', KEYS[1])
if value then
  redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. value, 'PX', ARGV[2])
  redis.call('DEL', KEYS[1])
end
return value
