#!lua flags=no-writes
-- Tell who is in a roster, together with its version.
-- KEYS roster, counts    ARGV bytes, entries: of a roster that is told at once
-- Returns {version, its text, changes, {field, value, ...}, run of this server}. The number of entries in place of these:
-- it is to be read in pages, and belongs to this version if text and changes are the same behind them. The version of one
-- of which nothing was told is the time, as that of a notice would be, and its text is empty.
local facts = redis.call('HMGET', KEYS[2], 'v', 'c', 'b')
local text, changes = facts[1] or '', facts[2] or ''
local version = text
if text == '' then
  local time = redis.call('TIME')
  version = string.format('%d', time[1] * 1000000 + time[2])
end
local info = redis.REDIS_VERSION_NUM and redis.pcall('INFO', 'server') -- fakeredis has no run
local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
local entries = redis.call('HLEN', KEYS[1])
local entries_max = tonumber(ARGV[2])
if not facts[3] then -- of nodes that count no bytes: an entry has 64 KiB at most
  entries_max = math.min(entries_max, tonumber(ARGV[1]) / 65536)
end
if entries > entries_max or tonumber(facts[3] or '0') > tonumber(ARGV[1]) then
  return {version, text, changes, entries, run}
end
return {version, text, changes, redis.call('HGETALL', KEYS[1]), run}
