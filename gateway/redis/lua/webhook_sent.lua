#!lua flags=allow-oom
-- Remove events that were sent from the queue, if the caller is still the sender.
-- KEYS state, queue    ARGV owner, id of the last event that was sent; empty: the queue seems to be empty
-- Returns the number of events that are left; -1: another node sends.
if redis.call('HGET', KEYS[1], 'sender') ~= ARGV[1] then
  return -1
end
local function number(field)
  return tonumber(redis.call('HGET', KEYS[1], field) or '0')
end
local events, bytes = number('n'), number('b')
if ARGV[2] ~= '' then
  for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', ARGV[2])) do
    events = events - 1
    bytes = bytes - #entry[2][2]
  end
  local ms, seq = string.match(ARGV[2], '^(%d+)-(%d+)$')
  redis.call('XTRIM', KEYS[2], 'MINID', ms .. '-' .. string.format('%d', seq + 1))
end
if #redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', '1') == 0 then
  events, bytes = 0, 0
end
redis.call('HSET', KEYS[1], 'n', string.format('%d', math.max(events, 0)), 'b', string.format('%d', math.max(bytes, 0)))
return math.max(events, 0)
