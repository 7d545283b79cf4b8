#!lua flags=no-writes
-- Read the entries of a roster together with its version.
-- KEYS roster, counts    ARGV bytes, entries: the largest roster that is returned as a whole
-- Returns {version, stored version or '', changes, {field, value, ...}, run of this server}. For a larger roster, the
-- number of entries instead of the list: the caller reads it in pages, and they belong to this version if the stored
-- version and changes are the same after the last page. If no notice was published yet, the version is the current time,
-- as the version of a notice would be, and the stored version is ''.
local facts = redis.call('HMGET', KEYS[2], 'v', 'c', 'b')
local text, changes = facts[1] or '', facts[2] or ''
local version = text
if text == '' then
  local time = redis.call('TIME')
  version = string.format('%d', time[1] * 1000000 + time[2])
end
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
local entries = redis.call('HLEN', KEYS[1])
local entries_max = tonumber(ARGV[2])
if not facts[3] then -- written by nodes that do not count bytes: an entry has 64 KiB at most
  entries_max = math.min(entries_max, tonumber(ARGV[1]) / 65536)
end
if entries > entries_max or tonumber(facts[3] or '0') > tonumber(ARGV[1]) then
  return {version, text, changes, entries, run}
end
return {version, text, changes, redis.call('HGETALL', KEYS[1]), run}
