-- One batch: ARGV is the writer, the number of the batch, the number of the last
-- one that the writer was told of, the mark that it has seen, the guards, the changes.
local writer, number, told = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZCARD', keys) -- a key of another type is an error here and not half way
redis.call('HLEN', values)
redis.call('ZCARD', snapshots)
redis.call('HLEN', water)
local last = tonumber(redis.call('HGET', writers, writer) or '0')
if last < told or behind(ARGV[4], ARGV[5]) then return answer('LOST') end
if last == number then return answer('OK') end -- a repetition: the answer got lost
if last > number then return answer('LATE') end

local at = 7
for _ = 1, tonumber(ARGV[6]) do
  if mark(redis.call('HGET', values, ARGV[at])) ~= ARGV[at + 1] then return answer('FENCED') end
  at = at + 2
end

redis.call('HSET', writers, writer, number)
redis.call('HINCRBY', water, 'writes', 1)
local open = open_snapshots()
while at <= #ARGV do
  local change, key, value = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if change == 'put' then
    put(open, key, value)
  elseif change == 'delete' then
    delete(open, key)
  else -- a range
    repeat
      local found = redis.call('ZRANGEBYLEX', keys, key, value, 'LIMIT', 0, 1000)
      for _, k in ipairs(found) do delete(open, k) end
    until #found == 0
  end
  at = at + 3
end
return answer('OK')
