if redis.call('GET', lease) == ARGV[1] then redis.call('DEL', lease) end
return 'OK'
