#!lua
-- Publish once, in order, and with a position if the channel has a history; perhaps several publications of one channel.
-- `library_text.py` also builds the function snorky_publish from this text.
-- KEYS state, stream, and an idempotency key if there is one; or one for each of several publications, '' = none
-- ARGV channel, entropy (24 hexadecimal digits, and 8 for each publication) and the rest of the header (of several
--      publications: all of them, separated by newlines; nothing if none has one), size (0 = any), ttl_ms (0 = no
--      history), keep_ms: how much longer than the stream the state lives, key_ttl_ms, each payload, and runs of servers,
--      separated by blanks: this server's, then those of servers from which the slot may have been migrated; '' = runs
--      are not compared
-- State: run of the server that wrote it; epoch, offset and tag of the last entry; marks: "MS:OFFSET ...", the offset
-- reached at each time, from which expired offsets are computed; next_ms: when the next mark is due.
-- An entry is OFFSET-0 with tag, predecessor's tag, payload, and attributes if the rest of the header has any, in this
-- order. A tag is the caller's digits for this publication, and 8 digits that all publications of the call have.
-- Returns EPOCH:OFFSET:TAG of the last publication, or '' if the channel has no history.
if KEYS[3] and not KEYS[4] then -- who passes several has looked
  local before = redis.call('GET', KEYS[3])
  if before then
    return before
  end
end
local count = #ARGV - 7
if ARGV[4] == '0' then
  for at = 3, #KEYS do
    if KEYS[at] ~= '' then
      redis.call('SET', KEYS[at], '', 'PX', ARGV[6])
    end
  end
  for number = 1, count do
    redis.call('PUBLISH', ARGV[1], ARGV[6 + number])
  end
  return ''
end
local time = redis.call('TIME')
local seconds, microseconds = tonumber(time[1]), tonumber(time[2])
local now_ms = seconds * 1000 + math.floor(microseconds / 1000)
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'tag', 'next_ms', 'run')
local epoch, offset, previous = state[1], tonumber(state[2] or '0'), state[3]
local run, is_due = state[5], false
local runs = ARGV[#ARGV]
if runs ~= '' and runs ~= run then
  run = string.match(runs, '^%S*')
  is_due = state[5] ~= run
  if is_due and not (state[5] and state[5] ~= '' and string.find(runs, state[5], 1, true)) then
    epoch = nil -- this run may have started from an older copy: entries stay, but clients may have later positions
  end
elseif not epoch then
  local info = redis.pcall('INFO', 'server') -- a publisher may lack this right: then a node renews the epoch later
  run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end
-- Not from math.random, which repeats the same sequence after every start of the server.
local function mix(number)
  return string.format('%08x', (number * 69069 + seconds + microseconds) % 4294967296)
end
local entropy = ARGV[2]
if not epoch then
  epoch = string.format('%x', seconds) .. string.sub(entropy, 1, 16)
  if not previous then
    previous = string.sub(entropy, 17, 24) .. mix(0)
    redis.call('DEL', KEYS[2])
  end
end
-- What is used for each publication is in locals: this is most of the cost of a burst.
local call, format, sub, stream, size = redis.call, string.format, string.sub, KEYS[2], ARGV[3]
local tail, rest = mix(tonumber(sub(previous, -8), 16)), sub(entropy, 25 + 8 * count)
local rests = {rest}
if rest ~= '' and count > 1 then
  rests = {}
  for each in string.gmatch(rest .. '\n', '(.-)\n') do
    rests[#rests + 1] = each
  end
end
local ids, tags = {}, {[0] = previous}
for number = 1, count do
  offset = offset + 1
  local id, tag, attributes = format('%d', offset), sub(entropy, 17 + 8 * number, 24 + 8 * number) .. tail, nil
  if rest ~= '' then
    attributes = string.match(rests[number], '^ =(%S+)')
  end
  if attributes then
    call('XADD', stream, id, 't', tag, 'p', previous, 'd', ARGV[6 + number], 'a', attributes)
    if size ~= '0' and number == count then
      call('XTRIM', stream, 'MAXLEN', size)
    end
  elseif size == '0' or number < count then
    call('XADD', stream, id, 't', tag, 'p', previous, 'd', ARGV[6 + number]) -- an ID without a dash is OFFSET-0
  else
    call('XADD', stream, 'MAXLEN', size, id, 't', tag, 'p', previous, 'd', ARGV[6 + number])
  end
  ids[number], tags[number], previous = id, tag, tag
end
local ttl_ms, next_ms = tonumber(ARGV[4]), tonumber(state[4] or '0')
if not is_due and now_ms < next_ms and next_ms <= now_ms + ttl_ms then
  redis.call('HSET', KEYS[1], 'offset', ids[count], 'tag', previous)
else
  local step_ms = math.ceil(ttl_ms / 16)
  local marks, expired = {}, nil
  for ms, at in string.gmatch(redis.call('HMGET', KEYS[1], 'marks')[1] or '', '(%d+):(%d+)') do
    if tonumber(ms) <= now_ms - ttl_ms then
      expired = tonumber(at)
    elseif tonumber(ms) <= now_ms then -- otherwise the clock was set back
      marks[#marks + 1] = ms .. ':' .. at
    end
  end
  if expired then
    redis.call('XTRIM', KEYS[2], 'MINID', string.format('%d-0', expired + 1))
  end
  marks[#marks + 1] = string.format('%d:%d', now_ms, offset)
  redis.call('HSET', KEYS[1], 'run', run or '', 'epoch', epoch, 'offset', ids[count], 'tag', previous,
    'next_ms', string.format('%d', now_ms + step_ms), 'marks', table.concat(marks, ' '))
  redis.call('PEXPIRE', KEYS[2], string.format('%d', ttl_ms + step_ms))
  redis.call('PEXPIRE', KEYS[1], string.format('%d', ttl_ms + step_ms + ARGV[5]))
end
local position = epoch .. ':' .. ids[count] .. ':' .. previous
if KEYS[4] then
  for number = 1, count do
    if KEYS[2 + number] ~= '' then
      redis.call('SET', KEYS[2 + number], epoch .. ':' .. ids[number] .. ':' .. tags[number], 'PX', ARGV[6])
    end
  end
elseif KEYS[3] then
  redis.call('SET', KEYS[3], position, 'PX', ARGV[6])
end
local header = '\1931 ' .. epoch .. ':'
for number = 1, count do
  local text = header .. ids[number] .. ':' .. tags[number] .. ' ' .. tags[number - 1] .. ' j' .. (rests[number] or '') .. '\n'
    .. ARGV[6 + number]
  if redis.call('PUBLISH', ARGV[1], text) == 0 then
    break -- nobody is subscribed, and nobody can subscribe before this script ends
  end
end
return position
