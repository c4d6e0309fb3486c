-- ARGV: the holder, for how long (ms), the key of the term, the holder's term. A
-- lease that ran out and that nobody took is given again.
local held = redis.call('GET', lease)
if held and held ~= ARGV[1] then return 'FENCED' end
if redis.call('HGET', values, ARGV[3]) ~= ARGV[4] then return 'FENCED' end
redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
return 'OK'
