-- ARGV: the holder, for how long (ms), the key of the term, its guard, the new
-- term, 1 to take it from whoever holds it, the mark that was seen.
if behind(ARGV[7], ARGV[8]) then return answer('LOST') end
local held = redis.call('GET', lease)
if held and held ~= ARGV[1] and ARGV[6] ~= '1' then return answer('HELD', held, redis.call('PTTL', lease)) end
if mark(redis.call('HGET', values, ARGV[3])) ~= ARGV[4] then return answer('TERM') end
redis.call('ZCARD', keys)
redis.call('ZCARD', snapshots)
put(open_snapshots(), ARGV[3], ARGV[5])
redis.call('HINCRBY', water, 'writes', 1)
redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
return answer('OK')
