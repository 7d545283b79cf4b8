#!lua
-- Replace the data of a roster's entry.
-- KEYS roster, counts
-- ARGV channel, field, data, notice (published as by `enter`), the largest size of the roster in bytes
-- Returns 1; 0: there is no such entry; -2: the roster would be too large.
local before = redis.call('HGET', KEYS[1], ARGV[2])
if not before then
  return 0
end
local colon = string.find(before, ':', 1, true)
local head = string.sub(before, 1, colon + tonumber(string.sub(before, 1, colon - 1)))
local grown = #head + #ARGV[3] - #before
local bytes_max = tonumber(ARGV[5] or '0')
if grown > 0 and bytes_max > 0 and tonumber(redis.call('HGET', KEYS[2], 'b') or '0') + grown > bytes_max then
  return -2
end
redis.call('HSET', KEYS[1], ARGV[2], head .. ARGV[3])
redis.call('HINCRBY', KEYS[2], 'b', string.format('%d', grown))
redis.call('HINCRBY', KEYS[2], 'c', '1')
if ARGV[4] ~= '' then
  local time = redis.call('TIME')
  local last = redis.call('HGET', KEYS[2], 'v') or '0'
  local version = string.format('%d', math.max(last + 1, time[1] * 1000000 + time[2]))
  redis.call('HSET', KEYS[2], 'v', version)
  redis.call('PUBLISH', ARGV[1], '\1933 ' .. version .. ' ' .. last .. ' ' .. ARGV[4])
end
return 1
