#!lua
-- Renew a node's lease for the webhooks of an app, and record what changed there. Queue the events that follow from it
-- for the whole cluster: a fact begins with the first node that claims it, and ends some time after the last node that
-- released it, unless a node claims it again before. Fence nodes whose lease stays expired, and choose the sender: the
-- first node that may send. It stays the sender until it resigns, is fenced, or may not send any more.
-- KEYS owners: sorted set, OWNER by the end of its lease; state: hash; counts: hash, the number of owners of each fact;
--      late: sorted set, facts without an owner by the time at which they end; queue: stream; fenced, dead: sorted sets,
--      OWNER by the time at which it was fenced, dead: until its facts are released; facts of this owner: sorted set
-- ARGV owner, number of this exchange, mode, ttl_ms, sighting_ms, gap_ms, late_ms, kept_ms, the largest number of events
--      in the queue and of their bytes, names of the changes that make an event, '1' if this owner may send, then changes
-- mode: '', 'reset': whatever Redis knows of this owner, it continues with this number, and changes are only =FACT;
--      'resign': give up the lease
-- A change is +FACT: claim, =FACT: claim without an event, -FACT: release, or an event, which begins with {. Events get
-- at most half of the queue. The first letter of a fact is its kind. Fields of state: "v OWNER": number of its last
-- exchange, "s OWNER": since when its lease was seen to be expired, "sender", "at": time of the last exchange, "n" and "b":
-- events and bytes in the queue.
-- Returns {"fenced"}; {"lost"}: Redis does not have the state that the previous exchange left; or {"ok", 1 if this owner
-- is the sender, events in the queue, dropped events, time in ms, 1 if more facts end now, dead owners...}. An exchange
-- with the number of the last one is a repetition: its changes are not applied again.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local owners, state, counts, late, queue, fenced, dead, held = unpack(KEYS)
local owner, mode = ARGV[1], ARGV[3]
local ttl, sighting, gap, delay = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local kept, events_max, bytes_max, wanted = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11]
local may_send = ARGV[12] == '1'
local function text(number)
  return string.format('%d', number)
end

if redis.call('ZSCORE', fenced, owner) then
  return {'fenced'}
end
local known = redis.call('HGET', state, 'v ' .. owner)
local is_repeated = known == ARGV[2] and mode ~= 'reset'
local is_next = known == text(ARGV[2] - 1) or (not known and ARGV[2] == '1')
if not (is_repeated or is_next or mode == 'reset') then
  return {'lost'}
end

-- leases: none may end later than one that is granted now, or Redis' clock was set back
for _, each in ipairs(redis.call('ZRANGEBYSCORE', owners, '(' .. text(now + ttl), '+inf', 'LIMIT', '0', '100')) do
  redis.call('ZADD', owners, 'XX', text(now + ttl), each)
end
redis.call('ZADD', owners, text(now + ttl), owner)
redis.call('HDEL', state, 's ' .. owner)
redis.call('HSET', state, 'v ' .. owner, ARGV[2])
local pause = now - tonumber(redis.call('HGET', state, 'at') or '0')
local was_paused = pause > gap or pause < 0 -- then all leases may have expired
redis.call('HSET', state, 'at', text(now))
for _, each in ipairs(redis.call('ZRANGEBYSCORE', owners, '-inf', text(now), 'LIMIT', '0', '20')) do
  local since = not was_paused and redis.call('HGET', state, 's ' .. each)
  if not since or tonumber(since) > now then
    redis.call('HSET', state, 's ' .. each, text(now))
  elseif now - since >= sighting then
    redis.call('ZREM', owners, each)
    redis.call('HDEL', state, 's ' .. each, 'v ' .. each)
    redis.call('ZADD', fenced, text(now), each)
    redis.call('ZADD', dead, text(now), each)
  end
end
redis.call('ZREMRANGEBYSCORE', fenced, '-inf', text(now - 3600000))
local sender = redis.call('HGET', state, 'sender')
if sender and (not redis.call('ZSCORE', owners, sender) or (sender == owner and not may_send)) then
  redis.call('HDEL', state, 'sender')
  sender = false
end
if not sender and may_send then
  redis.call('HSET', state, 'sender', owner)
  sender = owner
end

local events = tonumber(redis.call('HGET', state, 'n') or '0')
local bytes = tonumber(redis.call('HGET', state, 'b') or '0')
local dropped = 0
local function enqueue(event, share)
  if events + 1 > events_max * share or bytes + #event > bytes_max * share then
    dropped = dropped + 1
    return
  end
  redis.call('XADD', queue, '*', 'e', event)
  events = events + 1
  bytes = bytes + #event
end
local function note(sign, fact)
  if string.find(wanted, sign .. string.sub(fact, 1, 1), 1, true) then
    enqueue(sign .. fact, 1)
  end
end

for _, fact in ipairs(redis.call('ZRANGEBYSCORE', late, '(' .. text(now + delay), '+inf', 'LIMIT', '0', '100')) do
  redis.call('ZADD', late, 'XX', text(now + delay), fact) -- Redis' clock was set back
end
local ended = redis.call('ZRANGEBYSCORE', late, '-inf', text(now), 'LIMIT', '0', '500')
for _, fact in ipairs(ended) do
  redis.call('ZREM', late, fact)
  note('-', fact)
end

for at = 13, is_repeated and 12 or #ARGV do
  local sign, fact = string.sub(ARGV[at], 1, 1), string.sub(ARGV[at], 2)
  if sign == '{' then
    enqueue(ARGV[at], 0.5)
  elseif sign == '-' then
    if redis.call('ZREM', held, fact) == 1 and redis.call('HINCRBY', counts, fact, '-1') <= 0 then
      redis.call('HDEL', counts, fact)
      redis.call('ZADD', late, text(now + delay), fact)
    end
  elseif redis.call('ZADD', held, '0', fact) == 1 and redis.call('HINCRBY', counts, fact, '1') == 1 then
    if redis.call('ZREM', late, fact) == 0 and sign == '+' then
      note('+', fact)
    end
  end
end
redis.call('HSET', state, 'n', text(events), 'b', text(bytes))

if mode == 'resign' then
  if #redis.call('ZRANGE', held, '0', '0') == 0 then
    redis.call('ZREM', owners, owner)
    redis.call('HDEL', state, 'v ' .. owner, 's ' .. owner)
  else
    redis.call('ZADD', owners, '0', owner) -- another node releases what is left
  end
  if sender == owner then
    redis.call('HDEL', state, 'sender')
  end
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, kept)
end
local more = #ended == 500 and 1 or 0
local answer = {'ok', sender == owner and 1 or 0, events, dropped, now, more}
for _, each in ipairs(redis.call('ZRANGE', dead, '0', '9')) do
  answer[#answer + 1] = each
end
return answer
