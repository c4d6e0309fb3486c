forget(ARGV[1])
return 'OK'
