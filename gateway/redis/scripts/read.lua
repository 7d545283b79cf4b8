#!lua flags=no-writes
-- Read what was published behind a position, if it is still there, and is what followed it.
-- KEYS state, stream    ARGV epoch, offset, tag, count, max_bytes: about so much at most
-- Returns {offset of the last entry, tag, payload, tag, payload, ...}, or {} if it cannot be had.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'tag')
local since, tag = tonumber(ARGV[2]), ARGV[3]
if state[1] ~= ARGV[1] or tonumber(state[2]) < since then
  return {}
end
local answer = {state[2]}
if tonumber(state[2]) == since then
  if state[3] ~= tag then
    return {}
  end
  return answer
end
local bytes = 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], string.format('%d-0', since + 1), '+', 'COUNT', ARGV[4])) do
  local offset, fields = tonumber(string.match(entry[1], '^%d+')), entry[2]
  -- The successor knows its predecessor's tag: the position's own entry may be trimmed.
  if offset ~= since + 1 or fields[4] ~= tag then
    return {}
  end
  since, tag = offset, fields[2]
  answer[#answer + 1] = tag
  answer[#answer + 1] = fields[6]
  bytes = bytes + #fields[6]
  if bytes >= tonumber(ARGV[5]) then
    break
  end
end
if #answer == 1 then
  return {}
end
return answer
