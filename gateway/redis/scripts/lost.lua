#!lua flags=allow-oom
-- Note that a publication reached a channel that keeps a history without being kept.
-- KEYS state
-- From then on a client that comes back with a position up to the channel's last one is told of a gap. Nothing if the
-- channel has no history: then nobody has a position.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset')
if state[1] then
  redis.call('HSET', KEYS[1], 'lost', state[1] .. ':' .. state[2])
end
return 'OK'
