#!lua flags=allow-oom
-- Release facts of a fenced owner: those that no other owner has end late_ms after it was fenced. In the order of their
-- names, so that the members of a channel end before the channel. Then its numbers of subscribers: see
-- `webhook_numbers.lua`.
-- KEYS dead, counts, late, facts of the fenced owner, due
-- ARGV owner, late_ms, the largest number of facts, every_ms, kept_ms
-- Returns 1 if there may be more, else 0.
local since = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not since then
  return 0
end
local ends = string.format('%d', since + ARGV[2])
local time = redis.call('TIME')
local told = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4])
local facts = redis.call('ZRANGE', KEYS[4], '0', string.format('%d', ARGV[3] - 1), 'WITHSCORES')
for at = 1, #facts, 2 do
  local fact, number = facts[at], tonumber(facts[at + 1])
  redis.call('ZREM', KEYS[4], fact)
  local left = redis.call('HINCRBY', KEYS[2], fact, string.format('%d', -math.max(number, 1)))
  if left <= 0 then
    redis.call('HDEL', KEYS[2], fact)
  end
  if number > 0 then
    redis.call('ZADD', KEYS[5], 'NX', told, string.sub(fact, 3))
    redis.call('PEXPIRE', KEYS[5], ARGV[5])
  elseif left <= 0 then
    redis.call('ZADD', KEYS[3], ends, fact)
  end
end
if #facts == 2 * tonumber(ARGV[3]) then
  return 1
end
redis.call('ZREM', KEYS[1], ARGV[1])
return 0
