#!lua flags=no-writes
-- Read what was published behind a position, if it is still there, and is what followed it.
-- KEYS state, stream    ARGV epoch, offset, tag, count, max_bytes: so much at most, but one entry at least;
--                            payload_max_bytes: of one entry; is_away: '1' = the reader did not hear the channel meanwhile;
--                            runs of a Cluster's primaries: a slot may have come from any, if this one is among them
-- Returns {offset of the last entry, tag, payload, tag, payload, ...}, or {} if it cannot be had. A payload that is too
-- large is nil.
local STEP = 16 -- entries: what is read of them and not needed may be as large as they are
local run = redis.REDIS_VERSION_NUM and string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'tag', 'lost', 'run')
local before, runs = state[5], ARGV[8]
if before ~= run and not (before and before ~= '' and runs:find(run, 1, true) and runs:find(before, 1, true)) then
  return {} -- this run may have begun from an older copy: `publish.lua`
end
local since, tag = tonumber(ARGV[2]), ARGV[3]
if state[1] ~= ARGV[1] or tonumber(state[2]) < since then
  return {}
end
-- `lost.lua`: behind that offset something was published that is not kept. A node at the top has heard it.
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
    bytes = bytes + (payload and #payload or 0)
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
