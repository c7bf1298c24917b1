-- Notes that turns of a thread may wait in its journal.
-- KEYS 1 a part of the index
-- ARGV 1 thread (JSON)  2 token, new for each call  3 threads in this part at most
-- Returns OK or FULL. The key has no time to live. Safe to run twice.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then
  return 'FULL'
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 'OK'
