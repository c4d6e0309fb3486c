-- One batch: ARGV is the writer, the number of the batch, the number of the last
-- one that the writer was told of, the guards, the changes.
local writer, number, told = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZCARD', keys) -- a key of another type is an error here and not half way
redis.call('HLEN', values)
redis.call('ZCARD', snapshots)
local last = tonumber(redis.call('HGET', writers, writer) or '0')
if last == number then return 'OK' end -- a repetition: the answer got lost
if last > number then return 'LATE' end
if last < told then return 'LOST' end

local at = 5
for _ = 1, tonumber(ARGV[4]) do
  if mark(redis.call('HGET', values, ARGV[at])) ~= ARGV[at + 1] then return 'FENCED' end
  at = at + 2
end

redis.call('HSET', writers, writer, number)
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
return 'OK'
