-- ARGV: the holder, for how long (ms), the key of the term, the holder's term, the
-- mark that was seen. A lease that ran out and that nobody took is given again.
if behind(ARGV[5], ARGV[6]) then return answer('LOST') end
local held = redis.call('GET', lease)
if held and held ~= ARGV[1] then return answer('FENCED') end
if redis.call('HGET', values, ARGV[3]) ~= ARGV[4] then return answer('FENCED') end
redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
return answer('OK')
