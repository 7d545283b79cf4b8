#!lua flags=allow-oom
-- Change the units that one node counts against limits, and renew all its units in this bucket. They are in one hash,
-- which expires unless the node renews it. Its field with an empty name has the number of the node's last call.
-- If no node counts anything here, Redis may have lost its data. Then no units are granted for a while but those that
-- nodes already held: other nodes may not have written theirs again yet.
-- KEYS owners, settling, units of this node, units of each other node that the caller knows, in the order of ARGV
-- ARGV this node, ttl_ms, settle_ms, number of this call, number of the call before (empty: the names below are all
--      that this node counts; "*": they are the first of them), how many other nodes, their ids, then for each name: name, units held, units wanted,
--      maximum (0: none)
-- Returns {status, the other living nodes, the units that this node now has of each name, ms to wait for new ones,
-- after "*": the names that Redis had for this node, with an empty one}
-- status "ok"; otherwise no units were changed: "nodes": the caller does not know all other nodes; "lost": Redis does
-- not have the state after the call before; "late": a newer call came first.
local ttl_ms, settle_ms = tonumber(ARGV[2]), tonumber(ARGV[3])
local key_of = {}
for at = 1, tonumber(ARGV[6]) do
  key_of[ARGV[6 + at]] = KEYS[3 + at]
end
local owners = redis.call('SMEMBERS', KEYS[1])
local settling_ms = math.max(0, redis.call('PTTL', KEYS[2]))
if #owners == 0 or settling_ms > settle_ms then -- or Redis' clock was set back
  redis.call('SET', KEYS[2], '1', 'PX', ARGV[3])
  settling_ms = settle_ms
end
local living, is_known = {}, true
for _, owner in ipairs(owners) do
  if owner ~= ARGV[1] then
    local left_ms = key_of[owner] and redis.call('PTTL', key_of[owner]) or 0
    if left_ms == -2 then
      redis.call('SREM', KEYS[1], owner)
    else
      if left_ms > ttl_ms then -- Redis' clock was set back
        redis.call('PEXPIRE', key_of[owner], ARGV[2])
      end
      is_known = is_known and key_of[owner] ~= nil
      living[#living + 1] = owner
    end
  end
end
if not is_known then
  return {'nodes', living}
end
local before = redis.call('HGET', KEYS[3], '')
local known = {}
if ARGV[5] == '' or ARGV[5] == '*' then
  if before and tonumber(before) >= tonumber(ARGV[4]) then
    return {'late', living}
  end
  if ARGV[5] == '' then
    redis.call('DEL', KEYS[3])
  else -- other nodes must not take what the next calls write
    local words = redis.call('HGETALL', KEYS[3])
    for at = 1, #words, 2 do
      known[#known + 1] = words[at]
    end
  end
elseif before ~= ARGV[5] then
  return {'lost', living}
end
local granted = {}
for at = 7 + tonumber(ARGV[6]), #ARGV, 4 do
  local name, wanted, maximum = ARGV[at], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local own = tonumber(redis.call('HGET', KEYS[3], name) or 0)
  if wanted > own and maximum > 0 then
    local room = maximum
    if settling_ms > 0 then
      wanted = math.min(wanted, tonumber(ARGV[at + 1]))
    end
    for _, owner in ipairs(living) do
      room = room - tonumber(redis.call('HGET', key_of[owner], name) or 0)
    end
    wanted = math.max(own, math.min(wanted, room))
  end
  if wanted > 0 then
    redis.call('HSET', KEYS[3], name, string.format('%d', wanted))
  else
    redis.call('HDEL', KEYS[3], name)
  end
  granted[#granted + 1] = wanted
end
redis.call('HSET', KEYS[3], '', ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2]) -- it expires after the units of every node
return {'ok', living, granted, settling_ms, known}
