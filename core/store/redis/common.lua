-- Begins every script that reads or writes records. Nothing may be written
-- before all that can fail has been tried: Redis does not undo.
local keys, values, writers, snapshots, lease, water = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]

-- The high-water mark of the store: how often an administrator has accepted it as
-- it is (epoch, a time), and the number of writes. It never goes down.
local function mark_of_water()
  local m = redis.call('HMGET', water, 'epoch', 'writes')
  return tonumber(m[1] or '0'), tonumber(m[2] or '0')
end

-- behind tells whether the store is older than what a scheduler has seen of it. One
-- that knows tells all the others: the store keeps how new it should be.
local function behind(epoch, writes)
  epoch, writes = tonumber(epoch), tonumber(writes)
  local e, w = mark_of_water()
  local m = redis.call('HMGET', water, 'wanted_epoch', 'wanted_writes')
  local we, ww = tonumber(m[1] or '0'), tonumber(m[2] or '0')
  if we > epoch or we == epoch and ww > writes then epoch, writes = we, ww end
  local lost = e < epoch or e == epoch and w < writes
  if lost then
    redis.call('HSET', water, 'wanted_epoch', string.format('%.0f', epoch), 'wanted_writes', string.format('%.0f', writes))
  end
  return lost
end

-- answer adds the mark to an answer.
local function answer(...)
  local e, w = mark_of_water()
  local out = {e, w}
  for _, v in ipairs({...}) do out[#out + 1] = v end
  return out
end

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function forget(id)
  redis.call('ZREM', snapshots, id)
  redis.call('DEL', snapshots .. ':' .. id .. ':keys', snapshots .. ':' .. id .. ':values')
end

-- open_snapshots returns those that somebody may still read, and ends the others.
local function open_snapshots()
  local at = now()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', snapshots, '-inf', at)) do
    forget(id)
  end
  return redis.call('ZRANGE', snapshots, 0, -1)
end

-- quote makes a key readable.
local function quote(key)
  return '"' .. key:gsub('[^%w%p]', function(c) return string.format('\\x%02x', c:byte()) end) .. '"'
end

-- mark is how a value, or that there is none, is told.
local function mark(value)
  if value then return '+' .. value end
  return '-'
end

-- keep saves what a key was for the snapshots that have not seen it change.
local function keep(open, key)
  for _, id in ipairs(open) do
    local name = snapshots .. ':' .. id
    if redis.call('HEXISTS', name .. ':values', key) == 0 then
      redis.call('HSET', name .. ':values', key, mark(redis.call('HGET', values, key)))
      redis.call('ZADD', name .. ':keys', 0, key)
    end
  end
end

local function put(open, key, value)
  keep(open, key)
  redis.call('HSET', values, key, value)
  redis.call('ZADD', keys, 0, key)
end

local function delete(open, key)
  keep(open, key)
  redis.call('HDEL', values, key)
  redis.call('ZREM', keys, key)
end
