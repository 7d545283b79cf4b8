#!lua
-- Record how many subscribers channels have on a node, and return the numbers of all nodes together that are new to it.
-- Runs behind `webhook_exchange.lua`, with the number of the same exchange.
-- KEYS state, counts, queue, fenced, facts of this owner: see there. A number is a fact: `n CHANNEL`, with the subscribers
--      on this node as its score, and those on all nodes as its count. due: sorted set, channels by the time at which
--      their number is sent next; told: hash, CHANNEL: "NUMBER TIME" that was sent last; changed: sorted set, channels by
--      the serial number of that
-- ARGV owner, number of this exchange, the last serial number that it knows (-1: none), every_ms, many_every_ms, many,
--      after_ms, kept_ms, the largest number of events in the queue and of their bytes, '1' if numbers make events, then
--      changes: "#NUMBER CHANNEL"
-- A number is sent when a node reports one, also if the sum is the same: clients are new then. The first one is sent at
-- once, the next one every_ms later, or many_every_ms if one of both is above many. When Redis knows no numbers, because it
-- is new or has lost them, nodes have after_ms to report theirs before the first one is sent. Fields of state: "c": serial
-- number of the last number that was sent, "since": the time at which Redis knew none.
-- Returns {}: the exchange was not applied; or {events in the queue, dropped events, 1 if more is to be done now, serial
-- number, channel, number, channel, number...}. To repeat it has the same effect as to run it once.
local PART = 100 -- channels that one run tells; with as many changes it takes about 5 ms
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state, counts, queue, fenced, held, due, told, changed = unpack(KEYS)
local owner, known = ARGV[1], tonumber(ARGV[3])
local every, many_every, many, after = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local kept, events_max, bytes_max, has_events = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11] == '1'
local function text(number)
  return string.format('%d', number)
end
local function last_of(channel)
  local number, at = string.match(redis.call('HGET', told, channel) or '0 0', '^(%d+) (%d+)$')
  return tonumber(number), tonumber(at)
end
local function sum_of(channel)
  return tonumber(redis.call('HGET', counts, 'n ' .. channel) or '0')
end
local function pause_of(number, before)
  return (number > many or before > many) and many_every or every
end

if redis.call('ZSCORE', fenced, owner) or redis.call('HGET', state, 'v ' .. owner) ~= ARGV[2] then
  return {}
end
local serial = tonumber(redis.call('HGET', state, 'c') or '-1')
if serial < 0 then
  serial = 0
  redis.call('HSET', state, 'c', '0', 'since', text(now))
end
if known < 0 or known > serial then
  known = serial
end

for at = 12, #ARGV do
  local number, channel = string.match(ARGV[at], '^#(%d+) (.+)$')
  local fact = 'n ' .. channel
  local before = tonumber(redis.call('ZSCORE', held, fact) or '0')
  local own = tonumber(number)
  if own > 0 then
    redis.call('ZADD', held, number, fact)
  else
    redis.call('ZREM', held, fact)
  end
  if own ~= before and redis.call('HINCRBY', counts, fact, text(own - before)) <= 0 then
    redis.call('HDEL', counts, fact)
  end
  if own + before > 0 and not redis.call('ZSCORE', due, channel) then
    local last, told_at = last_of(channel)
    local pause = pause_of(sum_of(channel), last)
    redis.call('ZADD', due, text(math.max(now, math.min(told_at, now) + pause)), channel)
  end
end

local events = tonumber(redis.call('HGET', state, 'n') or '0')
local bytes = tonumber(redis.call('HGET', state, 'b') or '0')
local dropped, has_more = 0, 0
local waited = now - tonumber(redis.call('HGET', state, 'since'))
if waited >= after or waited < 0 then
  local latest = text(now + math.max(every, many_every))
  for _, channel in ipairs(redis.call('ZRANGEBYSCORE', due, '(' .. latest, '+inf', 'LIMIT', '0', '100')) do
    redis.call('ZADD', due, 'XX', latest, channel) -- Redis' clock was set back
  end
  local ripe = redis.call('ZRANGEBYSCORE', due, '-inf', text(now), 'LIMIT', '0', text(PART))
  for _, channel in ipairs(ripe) do
    redis.call('ZREM', due, channel)
    local number, last = sum_of(channel), last_of(channel)
    if number == 0 and last == 0 then
      redis.call('HDEL', told, channel)
      redis.call('ZREM', changed, channel)
    else
      if number ~= last and has_events then
        local event = '#' .. text(number) .. ' ' .. channel
        if events + 1 > events_max * 0.5 or bytes + #event > bytes_max * 0.5 then
          dropped = dropped + 1
        else
          redis.call('XADD', queue, '*', 'e', event)
          events = events + 1
          bytes = bytes + #event
        end
      end
      serial = serial + 1
      redis.call('HSET', told, channel, text(number) .. ' ' .. text(now))
      redis.call('ZADD', changed, text(serial), channel)
      if number == 0 then -- remembered until its pause is over
        redis.call('ZADD', due, text(now + pause_of(number, last)), channel)
      end
    end
  end
  has_more = #ripe == PART and 1 or 0
  redis.call('HSET', state, 'c', text(serial), 'n', text(events), 'b', text(bytes))
end

for _, key in ipairs({queue, due, told, changed}) do
  redis.call('PEXPIRE', key, kept)
end
local found =
  redis.call('ZRANGEBYSCORE', changed, '(' .. text(known), '+inf', 'WITHSCORES', 'LIMIT', '0', text(2 * PART))
local answer = {events, dropped, 0, serial}
for at = 1, #found, 2 do
  answer[#answer + 1] = found[at]
  answer[#answer + 1] = (last_of(found[at]))
end
if #found == 4 * PART then
  answer[4] = tonumber(found[#found])
  has_more = 1
end
answer[3] = has_more
return answer
