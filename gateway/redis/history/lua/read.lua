#!lua flags=no-writes
-- Read the publications after a position, if the stream still has all of them.
-- KEYS state, stream    ARGV epoch, offset, tag, count, max_bytes: at most this much, but at least one entry;
--                            payload_max_bytes: of one entry; is_away: '1' = the reader was not subscribed meanwhile;
--                            runs of a Cluster's primaries: if this server's run is among them, the slot may have been
--                            migrated from any of them
-- Returns {offset of the last entry, tag, payload, tag, payload, ...}, or {} if the position cannot be read from. A
-- payload that is too large is nil. If an entry has attributes, {payload, attributes} is in place of its payload.
local STEP = 16 -- entries: small, because one read may return much more than max_bytes
local ATTRIBUTES_MAX_BYTES = 65536 -- nodes write less; longer ones are left out
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'tag', 'lost', 'run')
local before, runs = state[5], ARGV[8]
if before ~= run and not (before and before ~= '' and runs:find(run, 1, true) and runs:find(before, 1, true)) then
  return {} -- this run may have started from an older copy: see `publish.lua`
end
local since, tag = tonumber(ARGV[2]), ARGV[3]
if state[1] ~= ARGV[1] or tonumber(state[2]) < since then
  return {}
end
-- `lost.lua`: after that offset something was published that is not in the history. A subscribed node whose position is
-- the last one has received it.
local lost_epoch, lost = string.match(state[4] or '', '^(%x+):(%d+)$')
if lost_epoch == ARGV[1] and since <= tonumber(lost) and (ARGV[7] == '1' or since < tonumber(state[2])) then
  return {}
end
local answer = {state[2]}
if tonumber(state[2]) == since then
  if state[3] ~= tag then
    return {}
  end
  return answer
end
local count, max_bytes, payload_max_bytes = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local bytes, is_full = 0, false
while count > 0 and not is_full do
  local wanted = math.min(STEP, count)
  local entries = redis.call('XRANGE', KEYS[2], string.format('%d-0', since + 1), '+', 'COUNT', wanted)
  count = #entries < wanted and 0 or count - wanted
  for _, entry in ipairs(entries) do
    local offset, fields = tonumber(string.match(entry[1], '^%d+')), entry[2]
    -- The successor knows its predecessor's tag: the position's own entry may be trimmed.
    if offset ~= since + 1 or fields[4] ~= tag then
      return {}
    end
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
    since, tag = offset, fields[2]
    answer[#answer + 1] = tag
    answer[#answer + 1] = payload
  end
end
if #answer == 1 then
  return {}
end
return answer
