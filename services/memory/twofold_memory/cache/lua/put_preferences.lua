-- Replaces the copy of a user's preferences, unless the copy is as new.
-- KEYS 1 hash of preferences
-- ARGV 1 name of the field that holds the version  2 version  3 time to live, ms  4… field, value, field, value …
-- Returns 1 if it was replaced, else 0. Safe to run twice and late.
local version = redis.call('HGET', KEYS[1], ARGV[1])
if version and tonumber(version) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
for index = 4, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
