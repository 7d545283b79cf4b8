#!lua flags=no-writes
-- Read the last publications that are kept, and where the channel stands.
-- KEYS state, stream    ARGV count, max_bytes: about so much at most
-- Returns {EPOCH:OFFSET:TAG, offset, predecessor's tag, tag, payload, offset ...}, the last one first; {} if the
-- channel has no history.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'tag')
if not state[1] then
  return {}
end
local answer = {state[1] .. ':' .. state[2] .. ':' .. state[3]}
local bytes = 0
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', ARGV[1])) do
  local fields = entry[2]
  bytes = bytes + #fields[6]
  if bytes > tonumber(ARGV[2]) and #answer > 1 then
    break
  end
  answer[#answer + 1] = string.match(entry[1], '^%d+')
  answer[#answer + 1] = fields[4]
  answer[#answer + 1] = fields[2]
  answer[#answer + 1] = fields[6]
end
return answer
