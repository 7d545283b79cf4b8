#!lua flags=no-writes
-- Read entries of a channel's history, the latest first or the oldest first, and its current position.
-- KEYS state, stream    ARGV count, max_bytes: at most this much, but at least one entry; payload_max_bytes: of one
--                       entry; runs as in read.lua; XREVRANGE: the latest first, or XRANGE: the oldest first; the
--                       offset that the first entry follows in this order, '' = begin at the end
-- Returns {EPOCH:OFFSET:TAG, offset, predecessor's tag, tag, payload, offset ...}, in the order asked for; {} if the
-- channel has no history, or another run of the server wrote it (call `position.lua` to continue it). A payload that is
-- too large is nil; attributes are as in read.lua.
local STEP, ATTRIBUTES_MAX_BYTES = 16, 65536 -- as in read.lua
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'tag', 'run')
local runs = ARGV[4]
if state[4] ~= run and not (state[4] and state[4] ~= '' and runs:find(run, 1, true) and runs:find(state[4], 1, true)) then
  return {}
end
if not state[1] then
  return {}
end
local answer = {state[1] .. ':' .. state[2] .. ':' .. state[3]}
local count, max_bytes, payload_max_bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local first, last = '+', '-'
if ARGV[5] == 'XRANGE' then
  first, last = '-', '+'
end
local bytes, from, is_full = 0, ARGV[6] == '' and first or '(' .. ARGV[6] .. '-0', false
while count > 0 and not is_full do
  local wanted = math.min(STEP, count)
  local entries = redis.call(ARGV[5], KEYS[2], from, last, 'COUNT', wanted)
  count = #entries < wanted and 0 or count - wanted
  for _, entry in ipairs(entries) do
    local fields = entry[2]
    local payload = #fields[6] <= payload_max_bytes and fields[6]
    local attributes = payload and fields[8]
    bytes = bytes + (payload and #payload or 0)
    if attributes and #attributes <= ATTRIBUTES_MAX_BYTES then
      bytes, payload = bytes + #attributes, {payload, attributes}
    end
    if bytes > max_bytes and #answer > 1 then
      is_full = true
      break
    end
    answer[#answer + 1] = string.match(entry[1], '^%d+')
    answer[#answer + 1] = fields[4]
    answer[#answer + 1] = fields[2]
    answer[#answer + 1] = payload
    from = '(' .. entry[1]
  end
end
return answer
