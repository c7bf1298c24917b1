-- Drops a thread's window of an older epoch, and keeps late writers of that epoch out; of an erased thread all there is.
-- KEYS 1 list of messages  2 head  3 list of waiting turns  4 their data
-- ARGV 1 epoch  2 time to live, ms  3 '1' if the thread is erased
-- Returns FENCED, or KEPT if the window is of this epoch or a newer one.
-- Safe to run twice and late.
local old_epoch = tonumber(redis.call('HGET', KEYS[2], 'epoch') or 0)
local epoch = tonumber(ARGV[1])
if old_epoch > epoch or (old_epoch == epoch and ARGV[3] ~= '1') then
  return 'KEPT'
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'first', 0, 'next', 0, 'hw', 0, 'bytes', 0, 'owner', '')
if ARGV[3] == '1' then
  redis.call('DEL', KEYS[3], KEYS[4])
  redis.call('HSET', KEYS[2], 'erased', 1)
else
  redis.call('HDEL', KEYS[2], 'erased') -- it was erased before, and begun anew
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 'FENCED'
