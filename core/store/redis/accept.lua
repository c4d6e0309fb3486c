-- The store is from now on what it is, however old. ARGV: the new epoch, the key of
-- the term, its guard, the new term or "", the key of the cluster or "".
if redis.call('EXISTS', lease) == 1 then return answer('HELD', redis.call('GET', lease), redis.call('PTTL', lease)) end
if mark(redis.call('HGET', values, ARGV[2])) ~= ARGV[3] then return answer('TERM') end
local epoch = mark_of_water()
redis.call('ZCARD', keys)
local open = open_snapshots()
if ARGV[4] ~= '' then put(open, ARGV[2], ARGV[4]) end
if ARGV[5] ~= '' then delete(open, ARGV[5]) end
redis.call('HSET', water, 'epoch', string.format('%.0f', math.max(epoch + 1, tonumber(ARGV[1]))))
redis.call('HDEL', water, 'wanted_epoch', 'wanted_writes')
redis.call('HINCRBY', water, 'writes', 1)
return answer('OK')
