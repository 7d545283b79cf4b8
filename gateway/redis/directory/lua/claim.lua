#!lua
-- Claim a unique name. The stored value is the owner, followed by a blank and the identity if there is one.
-- KEYS names
-- ARGV name, owner, "1" if there is an identity, identity, "1" to take over from the same identity,
--      the prefix of a node's direct channel (empty: it is in another slot), the message to the former owner: JSON
--      [names, name]
-- Returns 1: claimed; 0: another owner has it; or the former owner, if it was claimed and the caller must notify them.
local lost = 1
local before = redis.call('HGET', KEYS[1], ARGV[1])
if before then
  local owner, has_identity, identity = before, '0', ''
  local blank = string.find(before, ' ', 1, true)
  if blank then
    owner, has_identity, identity = string.sub(before, 1, blank - 1), '1', string.sub(before, blank + 1)
  end
  local node, incarnation, serial = string.match(owner, '^([^:]*):([^:]*):([^:]*)$')
  local my_node, _, my_serial = string.match(ARGV[2], '^([^:]*):([^:]*):([^:]*)$')
  if node ~= my_node or serial ~= my_serial then -- otherwise the same connection, perhaps under a former incarnation
    if ARGV[5] ~= '1' or ARGV[3] ~= '1' or has_identity ~= '1' or identity ~= ARGV[4] then
      return 0
    end
    if ARGV[6] == '' then
      lost = owner
    else
      redis.call('PUBLISH', ARGV[6] .. node .. '}', 'l ' .. incarnation .. ' ' .. serial .. '\n' .. ARGV[7])
    end
  end
end
local value = ARGV[2]
if ARGV[3] == '1' then
  value = value .. ' ' .. ARGV[4]
end
redis.call('HSET', KEYS[1], ARGV[1], value)
return lost
