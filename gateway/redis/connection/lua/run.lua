#!lua flags=no-writes
-- Return the run_id of this server, which changes with every start; '' on fakeredis, which has none.
return redis.REDIS_VERSION_NUM and string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
