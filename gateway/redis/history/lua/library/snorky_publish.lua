-- The function snorky_publish. `library_text.py` appends this file to the rules and the body of publish.lua.
-- KEYS the channel, PREFIX:{SERVICE:NAME}    ARGV payload, JSON; optional: an idempotency key
--      or, for several publications: a payload and an idempotency key, '' = none, for each
-- Returns EPOCH:OFFSET:TAG, or '' if the channel's rule keeps no history; of several publications a list of these.
-- Clearly malformed arguments are rejected, and then nothing is published.
-- A rule is size, ttl_ms and the literals of its pattern (gateway/config/rules/patterns.py): the parts between its
-- asterisks, and the head before each of its placeholders, if any. Times and sizes are text, as in ARGV of publish.lua.
local NONE = {'0', '0'}
local NAME_MAX_BYTES = 256
local ONCE_MAX_BYTES = 255
local PAYLOAD_MAX_BYTES = 1048576 -- as PAYLOAD_MAX_BYTES of gateway/config/limits.py; also of all payloads of a call
local PUBLICATIONS_MAX = 64 -- of a call: Redis executes nothing else meanwhile

local function refuse(why)
  return redis.error_reply('ERR snorky_publish: ' .. why)
end

-- Same escaping as once_key of gateway/redis/keys.py.
local function escaped(once)
  return (string.gsub(once, '[%%}]', {['%'] = '%25', ['}'] = '%7D'}))
end

-- Same algorithm as Pattern.segments of gateway/config/rules/patterns.py.
local function matches(parts, heads, name)
  local from = 1
  for _, head in ipairs(heads or {}) do
    if string.sub(name, from, from + #head - 1) ~= head then
      return false
    end
    local _, stop = string.find(name, '^[^:./]+', from + #head)
    if not stop then
      return false
    end
    from = stop + 1
  end
  if from > 1 then
    name = string.sub(name, from)
  end
  local first, count = parts[1], #parts
  if count == 1 then
    return name == first
  end
  local last = parts[count]
  if #name < #first + #last or string.sub(name, 1, #first) ~= first or string.sub(name, #name - #last + 1) ~= last then
    return false
  end
  local at, stop = #first + 1, #name - #last
  for number = 2, count - 1 do
    local found, to = string.find(name, parts[number], at, true)
    if not found or to > stop then
      return false
    end
    at = to + 1
  end
  return true
end

local function find(rules, name)
  for _, rule in ipairs(rules or {}) do
    if matches(rule[3], rule[4], name) then
      return rule
    end
  end
  return NONE
end

-- Returns the largest size and the longest time that the rules of any node give this channel.
local function most(tables, service, name)
  local size, ttl_ms = NONE[1], NONE[2]
  for _, services in ipairs(tables) do
    local rule = find(services[service], name)
    if tonumber(rule[1]) > tonumber(size) then
      size = rule[1]
    end
    if tonumber(rule[2]) > tonumber(ttl_ms) then
      ttl_ms = rule[2]
    end
  end
  return size, ttl_ms
end

-- Cache of decoded rule texts: a server may have several prefixes and databases, each with its own text.
local TEXTS_MAX = 16
local decoded, texts = {}, 0

local function decode(text)
  local found = decoded[text]
  if not found then
    if texts >= TEXTS_MAX then
      decoded, texts = {}, 0
    end
    found = cjson.decode(text)
    decoded[text], texts = found, texts + 1
  end
  return found
end

-- The rules belong to a prefix and a database. In a Cluster a function can read declared keys only, and there is only
-- one database, so there the library itself contains the rules.
-- Returns the rule tables of all nodes as text; nil if no node has registered rules; or nil and an error.
local function text_of(prefix)
  if IS_SHARDED then
    return RULES[prefix]
  end
  local text = redis.pcall('GET', prefix .. ':{nodes}::rules')
  if type(text) == 'table' then
    local key = prefix .. ':{nodes}::rules'
    return nil, refuse('cannot read the channel rules: give the Redis user +get and %R~' .. key .. ' (' .. text.err .. ')')
  end
  return text or nil
end

-- While a Cluster migrates a slot to this server, a client that follows ASK may access single keys here even if they
-- have not arrived yet; a command with several keys fails unless all have arrived. Without this check a second history
-- would begin here, and the existing one could no longer be migrated.
-- Returns the error to answer with, or nil. Other errors: the caller lacks a right, or the Cluster is down.
local function obstacle(keys)
  local found = redis.pcall('EXISTS', unpack(keys))
  if type(found) ~= 'table' then
    return nil
  end
  if string.find(found.err, 'non local key', 1, true) then
    return redis.error_reply('TRYAGAIN snorky_publish: the slot is being moved')
  end
  return found
end

-- Checks the payloads and idempotency keys of a call; returns the error to answer with, or nil.
local function mistake(args, count)
  local bytes = 0
  for number = 1, count do
    local payload, once = args[2 * number - 1], args[2 * number]
    local which = count > 1 and ' (publication ' .. number .. ' of the call)' or ''
    if once and (#once > ONCE_MAX_BYTES or (once == '' and count == 1)) then
      return refuse('an idempotency key takes 1 to 255 bytes' .. which)
    end
    bytes = bytes + #payload
    if bytes > PAYLOAD_MAX_BYTES then
      return refuse((count > 1 and 'the payloads of a call have ' or 'the payload has ') .. bytes .. ' bytes, more than '
        .. PAYLOAD_MAX_BYTES .. ': publish a smaller payload, or a reference to it' .. which)
    end
    -- cjson accepts NaN and other invalid JSON; every node checks for that later. A first byte 193 would be a header.
    if string.byte(payload) == 193 or not pcall(cjson.decode, payload) then
      return refuse('the payload is no JSON' .. which)
    end
  end
end

-- Returns the entropy of a call for publish.lua. The caller passes no random bytes. SALT differs with each loading, TIME
-- with each call.
local function entropy_of(count, name, payload)
  local time = redis.call('TIME')
  local digits = {redis.sha1hex(SALT .. time[1] .. ' ' .. time[2] .. name .. payload)}
  for number = 2, math.ceil((24 + 8 * count) / 40) do
    digits[number] = redis.sha1hex(digits[1] .. number)
  end
  return string.sub(table.concat(digits), 1, 24 + 8 * count)
end

-- Publishes several payloads, without those whose key was used before. onces: the key of each, '' = none. settings: as in
-- ARGV of publish.lua, from the size on. Returns the answer of each.
local function publish_several(name, own, onces, args, settings)
  local answers, firsts, numbers = {}, {}, {} -- firsts: by key, the first that has it; numbers: of those to publish
  for number, once in ipairs(onces) do
    if once == '' or not firsts[once] then
      firsts[once] = number
      answers[number] = once ~= '' and redis.call('GET', once) or nil
      numbers[#numbers + 1] = not answers[number] and number or nil
    end
  end
  if #numbers > 0 then
    local entropy = entropy_of(#numbers, name, args[2 * numbers[1] - 1])
    local keys, words = {own[1], own[2]}, {name, entropy, unpack(settings)}
    for at, number in ipairs(numbers) do
      keys[2 + at] = (#numbers > 1 or onces[number] ~= '') and onces[number] or nil
      words[#words + 1] = args[2 * number - 1]
    end
    words[#words + 1] = ''
    local epoch, offset, tail = string.match(publish(keys, words), '^(.-):(%d+):%x+(%x%x%x%x%x%x%x%x)$')
    for at, number in ipairs(numbers) do
      local head = string.sub(entropy, 17 + 8 * at, 24 + 8 * at)
      answers[number] = epoch and string.format('%s:%d:%s%s', epoch, offset - #numbers + at, head, tail) or ''
    end
  end
  for number, once in ipairs(onces) do
    answers[number] = answers[number] or answers[firsts[once]]
  end
  return answers
end

redis.register_function('snorky_publish', function(keys, args)
  local count = #args > 2 and #args / 2 or 1
  if #keys ~= 1 or #args < 1 or count % 1 ~= 0 or count > PUBLICATIONS_MAX then
    return refuse('takes one key, a payload, and perhaps an idempotency key; or up to ' .. PUBLICATIONS_MAX
      .. ' payloads, each followed by an idempotency key')
  end
  local prefix, service, name = string.match(keys[1], '^([^{}]+):{([a-z0-9_-]+):(.*)}$')
  if not prefix or #name > NAME_MAX_BYTES then
    return refuse('the key must be PREFIX:{SERVICE:CHANNEL}')
  end
  local text, problem = text_of(prefix)
  if not text then
    return problem or refuse('no node with this prefix has been here')
  end
  local wrong = mistake(args, count)
  if wrong then
    return wrong
  end
  local own, onces = {keys[1] .. ':position', keys[1] .. ':history'}, {}
  for number = 1, count do
    local once = args[2 * number] or ''
    onces[number] = once ~= '' and keys[1] .. ':once:given backend ' .. escaped(once) or ''
    own[#own + 1] = once ~= '' and onces[number] or nil
  end
  local met = IS_SHARDED and obstacle(own)
  if met then
    return met
  end
  local size, ttl_ms = most(decode(text), service, name)
  if count > 1 then
    return publish_several(keys[1], own, onces, args, {size, ttl_ms, KEEP_MS, ONCE_MS})
  end
  return publish(own, {keys[1], entropy_of(1, keys[1], args[1]), size, ttl_ms, KEEP_MS, ONCE_MS, args[1], ''})
end)

-- Identifies the loaded instance of the library, for `library_instance.py`. The first call after each load sets `born`.
-- KEYS any key of the slot to ask for
-- Returns FORMAT RUN BORN_US SALT LOADED_US DOUBT_UNTIL_US DOUBT; the last two are '0 -' if there is no doubt.
-- Every format from 3 on has this function, and may append words.
local born

redis.register_function{function_name = 'snorky_library', flags = {'no-writes'}, callback = function()
  local time = redis.call('TIME')
  if not born then
    local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
    born = run .. ' ' .. time[1] .. string.format('%06d', time[2])
  end
  local has_doubt = tonumber(DOUBT_UNTIL_US) > time[1] * 1000000
  return table.concat({FORMAT, born, SALT, LOADED_US, has_doubt and DOUBT_UNTIL_US or '0', has_doubt and DOUBT or '-'}, ' ')
end}
