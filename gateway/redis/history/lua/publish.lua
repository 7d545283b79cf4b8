#!lua
-- Publish once, in order, and with a position if the channel has a history. `library_text.py` also builds the function
-- snorky_publish from this text.
-- KEYS state, stream, and an idempotency key if there is one
-- ARGV channel, payload, entropy (32 hexadecimal digits) and the rest of the header, size (0 = any), ttl_ms (0 = no history), keep_ms: how much
--      longer than the stream the state lives, key_ttl_ms, runs of servers, separated by blanks: this server's, then
--      those of servers from which the slot may have been migrated; absent: runs are not compared
-- State: run of the server that wrote it; epoch, offset and tag of the last entry; marks: "MS:OFFSET ...", the offset
-- reached at each time, from which expired offsets are computed; next_ms: when the next mark is due.
-- An entry is OFFSET-0 with tag, predecessor's tag and payload, in this order.
-- Returns EPOCH:OFFSET:TAG, or '' if the channel has no history.
if KEYS[3] then
  local before = redis.call('GET', KEYS[3])
  if before then
    return before
  end
end
if ARGV[5] == '0' then
  if KEYS[3] then
    redis.call('SET', KEYS[3], '', 'PX', ARGV[7])
  end
  redis.call('PUBLISH', ARGV[1], ARGV[2])
  return ''
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'tag', 'next_ms', 'marks', 'run')
local epoch, offset, previous = state[1], tonumber(state[2] or '0'), state[3]
local run, is_due = state[6], false
if ARGV[8] then
  run = string.match(ARGV[8], '^%S*')
  is_due = state[6] ~= run
  if is_due and not (state[6] and state[6] ~= '' and string.find(ARGV[8], state[6], 1, true)) then
    epoch = nil -- this run may have started from an older copy: entries stay, but clients may have later positions
  end
elseif not epoch then
  local info = redis.pcall('INFO', 'server') -- a publisher may lack this right: then a node renews the epoch later
  run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end
-- Not from math.random, which repeats the same sequence after every start of the server.
local function tag(entropy, last)
  local mixed = (tonumber(string.sub(last, -8), 16) * 69069 + time[2] + time[1]) % 4294967296
  return entropy .. string.format('%08x', mixed)
end
if not epoch then
  epoch = string.format('%x', time[1]) .. string.sub(ARGV[3], 1, 16)
  if not previous then
    previous = tag(string.sub(ARGV[3], 17, 24), '0')
    redis.call('DEL', KEYS[2])
  end
end
offset = offset + 1
local new = tag(string.sub(ARGV[3], 25, 32), previous)
local id = string.format('%d-0', offset)
if ARGV[4] == '0' then
  redis.call('XADD', KEYS[2], id, 't', new, 'p', previous, 'd', ARGV[2])
else
  redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[4], id, 't', new, 'p', previous, 'd', ARGV[2])
end
local ttl_ms, next_ms = tonumber(ARGV[5]), tonumber(state[4] or '0')
if not is_due and now_ms < next_ms and next_ms <= now_ms + ttl_ms then
  redis.call('HSET', KEYS[1], 'offset', string.format('%d', offset), 'tag', new)
else
  local step_ms = math.ceil(ttl_ms / 16)
  local marks, expired = {}, nil
  for ms, at in string.gmatch(state[5] or '', '(%d+):(%d+)') do
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
  redis.call('HSET', KEYS[1], 'run', run or '', 'epoch', epoch, 'offset', string.format('%d', offset), 'tag', new,
    'next_ms', string.format('%d', now_ms + step_ms), 'marks', table.concat(marks, ' '))
  redis.call('PEXPIRE', KEYS[2], string.format('%d', ttl_ms + step_ms))
  redis.call('PEXPIRE', KEYS[1], string.format('%d', ttl_ms + step_ms + ARGV[6]))
end
local position = string.format('%s:%d:%s', epoch, offset, new)
if KEYS[3] then
  redis.call('SET', KEYS[3], position, 'PX', ARGV[7])
end
redis.call('PUBLISH', ARGV[1], '\1931 ' .. position .. ' ' .. previous .. ' j' .. string.sub(ARGV[3], 33) .. '\n' .. ARGV[2])
return position
