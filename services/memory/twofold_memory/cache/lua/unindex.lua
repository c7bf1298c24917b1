-- Forgets a thread, unless it has been noted anew since.
-- KEYS 1 a part of the index
-- ARGV 1 thread (JSON)  2 the token that was seen
-- Returns 1 if it is forgotten, else 0.
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
return 0
