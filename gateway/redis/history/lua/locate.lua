#!lua flags=no-writes
-- Find the tag of a position of which only epoch and offset are known.
-- KEYS state, stream    ARGV epoch, '' = the current one; offset; runs as in read.lua
-- Returns EPOCH:OFFSET:TAG, or false: the channel cannot be read from there.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'tag', 'run')
local epoch, offset, runs = state[1], tonumber(ARGV[2]), ARGV[3]
if state[4] ~= run and not (state[4] and state[4] ~= '' and runs:find(run, 1, true) and runs:find(state[4], 1, true)) then
  return false
end
if not epoch or (ARGV[1] ~= '' and ARGV[1] ~= epoch) then
  return false
end
local tag = offset == tonumber(state[2]) and state[3]
if not tag then -- the successor knows it: the position's own entry may be trimmed
  local id = string.format('%d-0', offset + 1)
  local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
  tag = entry and entry[2][4]
end
return tag and string.format('%s:%d:%s', epoch, offset, tag)
