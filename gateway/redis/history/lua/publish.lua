#!lua
-- Publish once, in order, and with a position if the channel has a history; perhaps several publications of one channel.
-- `library_text.py` also builds the function snorky_publish from this text.
-- KEYS state, stream, and an idempotency key if there is one; or one for each of several publications, '' = none
-- ARGV channel, payload, entropy (24 hexadecimal digits, and 8 for each publication) and the rest of the header (of
--      several publications: their rests, separated by newlines; nothing if none has one), size (0 = any), ttl_ms (0 = no
--      history), keep_ms: how much longer than the stream the state lives, key_ttl_ms, the payloads of further
--      publications, runs of servers, separated by blanks: this server's, then those of servers from which the slot may
--      have been migrated; '' = runs are not compared
-- State: run of the server that wrote it; epoch, offset and tag of the last entry; marks: "MS:OFFSET ...", the offset
-- reached at each time, from which expired offsets are computed; next_ms: when the next mark is due.
-- An entry is OFFSET-0 with tag, predecessor's tag, payload, and attributes if the rest of the header has any, in this
-- order. The tags of a call begin with the caller's digits for each publication, and all end with the same 8 digits.
-- Returns EPOCH:OFFSET:TAG of the last publication, or '' if the channel has no history.
if KEYS[3] and not KEYS[4] then -- who passes several has looked
  local before = redis.call('GET', KEYS[3])
  if before then
    return before
  end
end
local last = #ARGV - 8 -- number of the last publication; the first one has number 0
if ARGV[5] == '0' then
  for at = 3, #KEYS do
    if KEYS[at] ~= '' then
      redis.call('SET', KEYS[at], '', 'PX', ARGV[7])
    end
  end
  for number = 0, last do
    redis.call('PUBLISH', ARGV[1], ARGV[number == 0 and 2 or 7 + number])
  end
  return ''
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'tag', 'next_ms', 'marks', 'run')
local epoch, offset, previous = state[1], tonumber(state[2] or '0'), state[3]
local run, is_due = state[6], false
local runs = ARGV[#ARGV]
if runs ~= '' then
  run = string.match(runs, '^%S*')
  is_due = state[6] ~= run
  if is_due and not (state[6] and state[6] ~= '' and string.find(runs, state[6], 1, true)) then
    epoch = nil -- this run may have started from an older copy: entries stay, but clients may have later positions
  end
elseif not epoch then
  local info = redis.pcall('INFO', 'server') -- a publisher may lack this right: then a node renews the epoch later
  run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end
-- Not from math.random, which repeats the same sequence after every start of the server.
local salt = time[1] + time[2]
local function mix(number)
  return (number * 69069 + salt) % 4294967296
end
if not epoch then
  epoch = string.format('%x', time[1]) .. string.sub(ARGV[3], 1, 16)
  if not previous then
    previous = string.sub(ARGV[3], 17, 24) .. string.format('%08x', mix(0))
    redis.call('DEL', KEYS[2])
  end
end
local format, sub, call = string.format, string.sub, redis.call
local stream, size, heads, header, new = KEYS[2], ARGV[4], ARGV[3], '\1931 ' .. epoch .. ':', previous
local tail = format('%08x', mix(tonumber(sub(previous, -8), 16)))
local payload, rest, rests = ARGV[2], sub(heads, 33 + 8 * last), nil
if last > 0 and rest ~= '' then
  rests = string.gmatch(rest .. '\n', '(.-)\n')
  rest = rests()
end
local news = {} -- the messages to publish when the state is written
for number = 0, last do
  if number > 0 then
    payload = ARGV[7 + number]
    rest = rests and rests() or ''
  end
  offset, previous = offset + 1, new
  new = sub(heads, 25 + 8 * number, 32 + 8 * number) .. tail
  local id = format('%d', offset) -- means OFFSET-0
  local attributes = rest ~= '' and string.match(rest, '^ =(%S+)')
  if attributes then
    call('XADD', stream, id, 't', new, 'p', previous, 'd', payload, 'a', attributes)
    if size ~= '0' and number == last then
      call('XTRIM', stream, 'MAXLEN', size)
    end
  elseif size == '0' or number < last then
    call('XADD', stream, id, 't', new, 'p', previous, 'd', payload)
  else
    call('XADD', stream, 'MAXLEN', size, id, 't', new, 'p', previous, 'd', payload)
  end
  news[number + 1] = header .. id .. ':' .. new .. ' ' .. previous .. ' j' .. rest .. '\n' .. payload
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
if KEYS[4] then
  for number = 0, last do
    if KEYS[3 + number] ~= '' then
      local its = format('%s:%d:%s%s', epoch, offset - last + number, sub(heads, 25 + 8 * number, 32 + 8 * number), tail)
      redis.call('SET', KEYS[3 + number], its, 'PX', ARGV[7])
    end
  end
elseif KEYS[3] then
  redis.call('SET', KEYS[3], position, 'PX', ARGV[7])
end
for _, each in ipairs(news) do
  redis.call('PUBLISH', ARGV[1], each)
end
return position
