#!lua flags=allow-oom
-- Release facts of a fenced owner: those that no other owner has end late_ms after it was fenced. In the order of their
-- names, so that the members of a channel end before the channel.
-- KEYS dead, counts, late, facts of the fenced owner    ARGV owner, late_ms, the largest number of facts
-- Returns 1 if there may be more, else 0.
local since = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not since then
  return 0
end
local ends = string.format('%d', since + ARGV[2])
local facts = redis.call('ZRANGE', KEYS[4], '0', string.format('%d', ARGV[3] - 1))
for _, fact in ipairs(facts) do
  redis.call('ZREM', KEYS[4], fact)
  if redis.call('HINCRBY', KEYS[2], fact, '-1') <= 0 then
    redis.call('HDEL', KEYS[2], fact)
    redis.call('ZADD', KEYS[3], ends, fact)
  end
end
if #facts == tonumber(ARGV[3]) then
  return 1
end
redis.call('ZREM', KEYS[1], ARGV[1])
return 0
