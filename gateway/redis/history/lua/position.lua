#!lua
-- Return the current position of a channel's history. If another run of the server wrote the history, it gets a new
-- epoch and keeps its entries: see `publish.lua`.
-- KEYS state, stream    ARGV entropy (24 hexadecimal digits), keep_ms: minimum lifetime of the state, runs as in
--      read.lua, 1: begin a history if there is none; 0: do not
-- Returns EPOCH:OFFSET:TAG, or false: there is no history.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
local time = redis.call('TIME')
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'tag', 'run')
local epoch, offset, tag = state[1], state[2], state[3]
if not epoch then
  if ARGV[4] ~= '1' then
    return false
  end
  offset = '0'
  tag = string.sub(ARGV[1], 17, 24) .. string.format('%08x', time[2] % 4294967296)
  redis.call('DEL', KEYS[2])
end
if state[4] ~= run then
  local runs = ARGV[3]
  if not (epoch and state[4] and state[4] ~= '' and runs:find(run, 1, true) and runs:find(state[4], 1, true)) then
    epoch = string.format('%x', time[1]) .. string.sub(ARGV[1], 1, 16)
  end
  redis.call('HSET', KEYS[1], 'run', run, 'epoch', epoch, 'offset', offset, 'tag', tag)
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return epoch .. ':' .. offset .. ':' .. tag
