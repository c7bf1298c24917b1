-- Drops a thread's window of an older epoch, and keeps late writers of that epoch out.
-- KEYS 1 list of messages  2 head
-- ARGV 1 epoch  2 time to live, ms
-- Returns FENCED, or KEPT if the window is of this epoch or a newer one.
-- Safe to run twice and late.
local old_epoch = tonumber(redis.call('HGET', KEYS[2], 'epoch') or 0)
if old_epoch >= tonumber(ARGV[1]) then
  return 'KEPT'
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'first', 0, 'next', 0, 'hw', 0, 'bytes', 0, 'owner', '')
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 'FENCED'
