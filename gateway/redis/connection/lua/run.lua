#!lua flags=no-writes
-- Return the run_id of this server, which changes with every start.
return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
