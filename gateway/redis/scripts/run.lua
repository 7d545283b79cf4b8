#!lua flags=no-writes
-- Tell the run of this server: another one after every start. fakeredis, which has no such number, has none.
return redis.REDIS_VERSION_NUM and string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
