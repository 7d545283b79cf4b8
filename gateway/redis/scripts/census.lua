#!lua flags=no-writes
-- Tell who is in a roster, together with its version.
-- KEYS roster, counts
-- Returns {version, {field, value, ...}}. One of which nothing was told has the time for a version, as a notice would.
local version = redis.call('HGET', KEYS[2], 'v')
if not version then
  local time = redis.call('TIME')
  version = string.format('%d', time[1] * 1000000 + time[2])
end
return {version, redis.call('HGETALL', KEYS[1])}
