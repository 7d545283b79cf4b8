#!lua flags=allow-oom
-- Remove entries from a roster. A field names its owner, so a caller cannot remove the entries of another owner.
-- KEYS roster, counts
-- ARGV channel (empty: no notice is published, but the version still grows), then for each entry: field, notice if it is
--      the identity's last entry, notice if not
-- Notices are published as by `enter`.
-- Returns for each entry: 1: removed; 0: it did not exist.
local time = redis.call('TIME')
local answer = {}
for at = 2, #ARGV, 3 do
  local field = ARGV[at]
  local value = redis.call('HGET', KEYS[1], field)
  local found = 0
  if value then
    found = 1
    redis.call('HDEL', KEYS[1], field)
    if redis.call('HINCRBY', KEYS[2], 'b', string.format('%d', -#field - #value)) < 0 then
      redis.call('HSET', KEYS[2], 'b', '0') -- the entry was written by a node that does not count bytes
    end
    redis.call('HINCRBY', KEYS[2], 'c', '1')
    local colon = string.find(value, ':', 1, true)
    local identity = 'i' .. string.sub(value, colon + 1, colon + tonumber(string.sub(value, 1, colon - 1)))
    local notice = ARGV[at + 2]
    if redis.call('HINCRBY', KEYS[2], identity, '-1') <= 0 then
      redis.call('HDEL', KEYS[2], identity)
      notice = ARGV[at + 1]
    end
    if notice ~= '' or ARGV[1] == '' then
      local last = redis.call('HGET', KEYS[2], 'v') or '0'
      local version = string.format('%d', math.max(last + 1, time[1] * 1000000 + time[2]))
      redis.call('HSET', KEYS[2], 'v', version)
      if ARGV[1] ~= '' then
        redis.call('PUBLISH', ARGV[1], '\1933 ' .. version .. ' ' .. last .. ' ' .. notice)
      end
    end
  end
  answer[#answer + 1] = found
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[2])
end
return answer
