#!lua flags=allow-oom
-- Note that a publication reached a channel that keeps a history without being kept, or that it may have.
-- KEYS state    ARGV doubt: names the event by which it may have, which is noted once; none if it did
-- From then on a client that comes back with a position up to the channel's last one is told of a gap. Nothing if the
-- channel has no history: then nobody has a position.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'doubt')
if state[1] and (not ARGV[1] or state[3] ~= ARGV[1]) then
  redis.call('HSET', KEYS[1], 'lost', state[1] .. ':' .. state[2])
  if ARGV[1] then
    redis.call('HSET', KEYS[1], 'doubt', ARGV[1])
  end
end
return 'OK'
