#!lua flags=allow-oom
-- Release names, each only if the given owner has it.
-- KEYS names    ARGV for each: name, owner
-- Returns for each: 1: released; 0: this owner did not have it.
local answer = {}
for at = 1, #ARGV, 2 do
  local value = redis.call('HGET', KEYS[1], ARGV[at])
  local found = 0
  if value and (value .. ' '):sub(1, #ARGV[at + 1] + 1) == ARGV[at + 1] .. ' ' then
    found = redis.call('HDEL', KEYS[1], ARGV[at])
  end
  answer[#answer + 1] = found
end
return answer
