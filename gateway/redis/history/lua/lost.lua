#!lua flags=allow-oom
-- Record that a publication was delivered on a channel with history but not added to the history, or may have been.
-- KEYS state    ARGV doubt: the mark of a period in which it may have happened, recorded once; omitted if it happened
-- Afterwards, a client that recovers from any position up to the channel's last one gets a gap. Does nothing if the
-- channel has no history: then no client has a position.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'doubt')
if state[1] and (not ARGV[1] or state[3] ~= ARGV[1]) then
  redis.call('HSET', KEYS[1], 'lost', state[1] .. ':' .. state[2])
  if ARGV[1] then
    redis.call('HSET', KEYS[1], 'doubt', ARGV[1])
  end
end
return 'OK'
