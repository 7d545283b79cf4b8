#!lua
-- Return the time of the server that dates the revocations; `revoke.lua` rounds its times down in the same way.
-- KEYS revocations    ARGV none
-- Returns milliseconds.
local time = redis.call('TIME')
return string.format('%d', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
