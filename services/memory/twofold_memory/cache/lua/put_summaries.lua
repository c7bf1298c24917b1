-- Replaces the copy of a conversation's newest summaries, unless the copy is as new.
-- KEYS 1 hash
-- ARGV 1 epoch of the conversation  2 version of its summaries  3 time to live, ms  4 the summaries
-- Returns 1 if it was replaced, else 0. Safe to run twice and late.
local copy = redis.call('HMGET', KEYS[1], 'epoch', 'version')
local epoch, version = tonumber(copy[1] or 0), tonumber(copy[2] or -1)
if epoch > tonumber(ARGV[1]) or (epoch == tonumber(ARGV[1]) and version >= tonumber(ARGV[2])) then
  return 0
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'version', ARGV[2], 'summaries', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
