-- One page of a scan: ARGV is the snapshot, 1 for the first page, the bounds, 1
-- for greatest first, the most pairs, the bytes after which to end, and for how
-- long the snapshot is kept (ms). It returns whether there is more and the pairs of the
-- present, then the same of what changed since the snapshot.
local id, first, reverse, most, bytes = ARGV[1], ARGV[2] == '1', ARGV[5] == '1', tonumber(ARGV[6]), tonumber(ARGV[7])

local function read(index, hash)
  local found
  if reverse then
    found = redis.call('ZREVRANGEBYLEX', index, ARGV[4], ARGV[3], 'LIMIT', 0, most)
  else
    found = redis.call('ZRANGEBYLEX', index, ARGV[3], ARGV[4], 'LIMIT', 0, most)
  end
  local out, size = {}, 0
  for i, key in ipairs(found) do
    local value = redis.call('HGET', hash, key)
    if not value then return redis.error_reply('DAMAGED ' .. hash .. ' has no value for the key ' .. quote(key)) end
    out[#out + 1] = key
    out[#out + 1] = value
    size = size + #key + #value
    if size >= bytes and i < #found then return 1, out end
  end
  return #found == most and 1 or 0, out
end

local more, pairs_now = read(keys, values)
if type(more) == 'table' then return more end -- an error
if first then
  if more == 1 then redis.call('ZADD', snapshots, now() + ARGV[8], id) end
  return {more, pairs_now, 0, {}}
end
local ends, at = redis.call('ZSCORE', snapshots, id), now()
if not ends or tonumber(ends) <= at then return 'GONE' end
if ends - at < ARGV[8] / 2 then redis.call('ZADD', snapshots, at + ARGV[8], id) end
local more_then, pairs_then = read(snapshots .. ':' .. id .. ':keys', snapshots .. ':' .. id .. ':values')
if type(more_then) == 'table' then return more_then end
return {more, pairs_now, more_then, pairs_then}
