-- SPDX-License-Identifier: Apache-2.0
-- The one place where the shared record of a service's breaker changes.
-- KEYS: record (hash), failures (zset: "<process>\n<the process's own number>" by sequence),
-- users and away (zsets: process by ms)
-- ARGV: operation, process, epoch the caller knows, channel, service, arguments (JSON)
-- Answers, and publishes where something changed, the record as JSON. Every time in it is a remaining time in ms,
-- 0: none; Redis' clock is the only one.
local record, failures, users, away = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local operation, process, epoch, channel, service = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local given = cjson.decode(ARGV[6])
local DAY, USE, MOST = 86400000, 60000, 256

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local stored = redis.call('HGETALL', record)
local is_new = #stored == 0
local r = {}
for i = 1, #stored, 2 do r[stored[i]] = stored[i + 1] end
local NUMBERS = {'epoch', 'revision', 'sequence', 'reopens', 'lease', 'expires', 'gate', 'opened'}
for _, name in ipairs(NUMBERS) do r[name] = tonumber(r[name] or '0') end
local TEXTS = {'token', 'error', 'actor', 'reason'}
for _, name in ipairs(TEXTS) do r[name] = r[name] or '' end
r.state = r.state or 'closed'

local function left(instant)
  if instant == 0 then return 0 end
  return math.max(1, instant - now)
end

local function shown()
  return {
    service = service, state = r.state, epoch = r.epoch, revision = r.revision, sequence = r.sequence,
    failures = redis.call('ZCARD', failures), reopens = left(r.reopens), lease = left(r.lease),
    expires = left(r.expires), gate = math.max(0, r.gate - now), opened = r.opened, error = r.error,
    actor = r.actor, reason = r.reason
  }
end

local function save()
  r.revision = r.revision + 1
  local flat = {'state', r.state}
  for _, name in ipairs(NUMBERS) do flat[#flat + 1] = name; flat[#flat + 1] = string.format('%.0f', r[name]) end
  for _, name in ipairs(TEXTS) do flat[#flat + 1] = name; flat[#flat + 1] = r[name] end
  redis.call('HSET', record, unpack(flat))
  if (r.state == 'isolated' or r.state == 'disabled') and r.expires == 0 then
    redis.call('PERSIST', record) -- an order without an end is not forgotten
  else
    redis.call('PEXPIRE', record, DAY + left(r.expires))
  end
  redis.call('PUBLISH', channel, cjson.encode(shown()))
end

local function enter(state)
  r.state = state
  r.epoch = r.epoch + 1
  r.reopens, r.lease, r.expires, r.opened = 0, 0, 0, 0
  r.token, r.actor, r.reason = '', '', ''
  redis.call('DEL', away)
  if state ~= 'open' then redis.call('DEL', failures) end
end

local function open(cool)
  local since = r.opened
  enter('open')
  r.opened = since > 0 and since or now
  r.reopens = now + cool
end

local function alive(key, from)
  local others = 0
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. string.format('%.0f', from), '+inf')) do
    if name ~= process then others = others + 1 end
  end
  return others
end

local function processes_in_streak()
  local seen, number = {}, 0
  for _, member in ipairs(redis.call('ZRANGE', failures, 0, -1)) do
    local name = string.match(member, '^[^\n]*')
    if not seen[name] then seen[name] = true; number = number + 1 end
  end
  return number
end

-- What a process says of its own failures is in order, however late it hears what the others know.
local function forgive_own(newest)
  local number = 0
  for _, member in ipairs(redis.call('ZRANGE', failures, 0, -1)) do
    local name, own = string.match(member, '^([^\n]*)\n(.*)$')
    if name == process and tonumber(own) <= newest then number = number + redis.call('ZREM', failures, member) end
  end
  return number
end

-- One sick process must not keep the healthy ones away: several must agree, or nobody else be there.
local function agreed()
  local streak = redis.call('ZCARD', failures) >= given.fail_max
  if not streak and not given.tripped then return false end
  if alive(users, now - USE) == 0 then return true end
  if streak and processes_in_streak() >= given.quorum then return true end
  return given.tripped and alive(away, now) + 1 >= given.quorum
end

if (r.state == 'isolated' or r.state == 'disabled') and r.expires > 0 and now >= r.expires then
  enter('closed')
  save()
end

local granted = false
if operation == 'fail' then
  if epoch == r.epoch and r.state == 'closed' then
    r.sequence = r.sequence + 1
    r.error = given.error
    redis.call('ZADD', failures, r.sequence, process .. '\n' .. string.format('%.0f', given.number))
    redis.call('ZREMRANGEBYRANK', failures, 0, -MOST - 1)
    redis.call('PEXPIRE', failures, DAY)
    if given.tripped then
      redis.call('ZADD', away, now + given.cool, process)
      redis.call('PEXPIRE', away, DAY)
    end
    if agreed() then open(given.cool) end
    save()
  end
elseif operation == 'succeed' then
  if epoch == r.epoch and r.state == 'closed' then
    local forgiven = redis.call('ZREMRANGEBYSCORE', failures, '-inf', given.seen) + forgive_own(given.own)
    if forgiven > 0 then save() end
  end
elseif operation == 'probe' then
  local free = (r.state == 'open' and now >= r.reopens) or (r.state == 'half_open' and now >= r.lease)
  if free then
    local since = r.opened
    if r.state == 'open' then enter('half_open') end
    r.opened, r.token, r.lease = since, given.token, now + given.lease
    granted = true
    save()
  end
elseif operation == 'verdict' then
  if r.state == 'half_open' and r.token == given.token then
    if given.outcome == 'success' then enter('closed')
    elseif given.outcome == 'failure' then r.error = given.error; open(given.cool)
    else r.token, r.lease = '', 0 end
    save()
  end
elseif operation == 'throttle' then
  if now + given.pause > r.gate then r.gate = now + given.pause; save() end
elseif operation == 'force' then
  if not (given.only_if_new and not is_new) then
    enter(given.state)
    r.actor, r.reason = given.actor, given.reason
    if given.expires > 0 then r.expires = now + given.expires end
    if given.state == 'closed' then r.actor, r.reason = '', '' end
    save()
  end
elseif operation == 'refill' then
  if epoch > r.epoch then
    r.state, r.epoch = given.state, epoch
    r.revision = math.max(r.revision, given.revision)
    r.opened, r.error, r.actor, r.reason, r.token = given.opened, given.error, given.actor, given.reason, ''
    r.sequence = math.max(r.sequence, given.sequence)
    r.reopens = given.reopens > 0 and now + given.reopens or 0
    r.expires = given.expires > 0 and now + given.expires or 0
    r.gate = math.max(r.gate, now + given.gate)
    r.lease = 0
    if r.state == 'half_open' then r.state = 'open'; r.reopens = now end -- nobody's probe is known any more
    save()
  end
elseif operation == 'beat' then
  if given.used then
    redis.call('ZADD', users, now, process)
    redis.call('ZREMRANGEBYSCORE', users, '-inf', now - USE)
    redis.call('PEXPIRE', users, DAY)
  end
  if given.away > 0 and r.state == 'closed' then
    redis.call('ZADD', away, now + given.away, process)
    redis.call('PEXPIRE', away, DAY)
  else
    redis.call('ZREM', away, process)
  end
end

local answer = shown()
answer.granted = granted
if operation == 'read' or operation == 'force' then
  answer.open_in = redis.call('ZRANGEBYSCORE', away, '(' .. string.format('%.0f', now), '+inf')
  if #answer.open_in == 0 then answer.open_in = nil end
end
return cjson.encode(answer)
