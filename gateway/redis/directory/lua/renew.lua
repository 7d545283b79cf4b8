#!lua flags=allow-oom
-- Renew a node's lease, even if it has expired: only a reaper's claim ends it for good. Store the node's state for
-- `snorky stats`; it expires as the lease does. A state that cannot be stored costs no lease.
-- Leases that expire later than one granted now, and sweeps that are due later than one scheduled now, were written
-- before Redis' clock was set back. They are shortened; otherwise dead owners would remain for that much longer.
-- KEYS leases, claim, reaped, nodes, state of this node
-- ARGV owner, ttl_ms, sweep_ms: the longest time until a dead owner is due, node id, state: JSON (empty: none)
-- Returns {"held", "new" (Redis had no such lease) or "fenced", the error if the state was not stored, else ''}.
if redis.call('EXISTS', KEYS[2]) == 1 then
  return {'fenced', ''}
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local function bound(key, latest_ms)
  local latest = string.format('%d', latest_ms)
  for _, owner in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. latest, '+inf', 'LIMIT', '0', '100')) do
    redis.call('ZADD', key, 'XX', latest, owner)
  end
end
local until_ms = now_ms + ARGV[2]
bound(KEYS[1], until_ms)
bound(KEYS[3], now_ms + ARGV[3])
local status = 'held'
if redis.call('ZADD', KEYS[1], string.format('%d', until_ms), ARGV[1]) == 1 then
  status = 'new'
end
local problem = ''
if ARGV[5] ~= '' then
  for _, done in ipairs({
    redis.pcall('SADD', KEYS[4], ARGV[4]),
    redis.pcall('SET', KEYS[5], ARGV[5], 'PX', ARGV[2]),
  }) do
    problem = type(done) == 'table' and done.err or problem
  end
end
return {status, problem}
