#!lua
-- Tell where a channel's history stands; it begins here if there is none.
-- KEYS state, stream    ARGV entropy (24 hexadecimal digits), keep_ms: how long the state lives at least
-- Returns EPOCH:OFFSET:TAG.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'tag')
local epoch, offset, tag = state[1], state[2], state[3]
if not epoch then
  local time = redis.call('TIME')
  epoch = string.format('%x', time[1]) .. string.sub(ARGV[1], 1, 16)
  offset = '0'
  tag = string.sub(ARGV[1], 17, 24) .. string.format('%08x', time[2] % 4294967296)
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'offset', offset, 'tag', tag)
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return epoch .. ':' .. offset .. ':' .. tag
