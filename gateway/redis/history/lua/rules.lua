#!lua flags=allow-oom
-- Register the channel rules of a node and merge them with those of all other nodes.
-- KEYS lines, merged    ARGV digest, table (JSON), grace_ms, step_max_ms, digest of the merged text the caller has,
--      keep_ms: how long both keys live without any node
-- Lines: a hash of rule tables by their digests, "DUE_MS TABLE". Its field ":clock", "COUNTED_MS LAST_MS", advances only
-- while nodes register. Lines expire by that clock, so stopping all nodes or changing Redis' clock expires none.
-- Merged: a JSON list of all tables, which the function snorky_publish reads.
-- Returns the merged text, or '' if the caller has it already.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local counted_ms, last_ms = string.match(redis.call('HGET', KEYS[1], ':clock') or '', '^(%d+) (%d+)$')
local passed_ms = math.max(0, math.min(now_ms - tonumber(last_ms or now_ms), tonumber(ARGV[4])))
counted_ms = tonumber(counted_ms or '0') + passed_ms
redis.call('HSET', KEYS[1], ':clock', string.format('%d %d', counted_ms, now_ms))
-- A line is long and each write is replicated, so it is rewritten only when 1/60 of its time has passed.
local due_ms = tonumber(string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(%d+) {') or '0')
if due_ms < counted_ms + ARGV[3] - ARGV[3] / 60 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %s', counted_ms + ARGV[3], ARGV[2]))
end
local digests, tables = {}, {}
local lines = redis.call('HGETALL', KEYS[1])
for at = 1, #lines, 2 do
  local until_ms, text = string.match(lines[at + 1], '^(%d+) ({.*})$')
  if until_ms and tonumber(until_ms) > counted_ms then
    digests[#digests + 1] = lines[at]
    tables[lines[at]] = text
  elseif lines[at] ~= ':clock' then
    redis.call('HDEL', KEYS[1], lines[at])
  end
end
table.sort(digests)
local sorted = {}
for at, digest in ipairs(digests) do
  sorted[at] = tables[digest]
end
local merged = '[' .. table.concat(sorted, ',') .. ']'
if redis.call('GET', KEYS[2]) ~= merged then
  redis.call('SET', KEYS[2], merged)
end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
if redis.sha1hex(merged) == ARGV[5] then
  return ''
end
return merged
