#!lua
-- Enter a roster, or replace the data of an existing entry.
-- KEYS roster, counts
-- ARGV channel, field (OWNER blank ENTRY), identity, data, notice if it is the identity's first entry, notice if not,
--      quiet (1: no notice is published, but the version still grows, because subscribers may have received `left` for
--      this entry; 0), the largest size of the roster in bytes (0: no limit)
-- A value is the length of the identity, a colon, the identity, the data. Counts: "i" + identity: its entries; "b": bytes
-- of fields and values; "c": changes, with or without notice; "v": the version of the last notice, in microseconds, so
-- that it keeps growing even if the roster was empty in between. A notice is published with its version and the previous
-- one in front: `publication.py`, "change".
-- Returns {status, version}. Status 1: first entry of the identity; 0: not the first; -1: the entry belongs to another
-- identity; -2: the roster would be too large. Version: of the roster with this entry, as `census` returns it.
local identity = ARGV[3]
local value = string.format('%d', #identity) .. ':' .. identity .. ARGV[4]
local before = redis.call('HGET', KEYS[1], ARGV[2])
local status = 0
if before then
  local colon = string.find(before, ':', 1, true)
  if string.sub(before, colon + 1, colon + tonumber(string.sub(before, 1, colon - 1))) ~= identity then
    return {-1, '0'}
  end
end
if before ~= value then
  local grown = #value - (before and #before or -#ARGV[2])
  local bytes_max = tonumber(ARGV[8] or '0')
  if grown > 0 and bytes_max > 0 and tonumber(redis.call('HGET', KEYS[2], 'b') or '0') + grown > bytes_max then
    return {-2, '0'}
  end
  redis.call('HSET', KEYS[1], ARGV[2], value)
  redis.call('HINCRBY', KEYS[2], 'b', string.format('%d', grown))
  redis.call('HINCRBY', KEYS[2], 'c', '1')
end
local version = redis.call('HGET', KEYS[2], 'v')
if not before then
  local notice = ARGV[6]
  if redis.call('HINCRBY', KEYS[2], 'i' .. identity, '1') == 1 then
    status = 1
    notice = ARGV[5]
  end
  if notice ~= '' or ARGV[7] == '1' then
    local time = redis.call('TIME')
    local last = version or '0'
    version = string.format('%d', math.max(last + 1, time[1] * 1000000 + time[2]))
    redis.call('HSET', KEYS[2], 'v', version)
    if ARGV[7] ~= '1' then
      redis.call('PUBLISH', ARGV[1], '\1933 ' .. version .. ' ' .. last .. ' ' .. notice)
    end
  end
end
if not version then
  local time = redis.call('TIME')
  version = string.format('%d', time[1] * 1000000 + time[2])
end
return {status, version}
