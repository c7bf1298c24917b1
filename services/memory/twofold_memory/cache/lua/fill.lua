-- Replaces a thread's window by what Postgres had in one snapshot, unless the window is newer.
-- KEYS 1 list of messages  2 head  3 list of waiting turns  4 their data
-- ARGV 1 epoch  2 next seq  3 time to live, ms  4 owner ('' for nobody)  5… the elements, ending at next - 1, at least one
-- Returns FILLED, ERASED, OLD (of an older epoch), TOO_OLD (a higher seq was told since), NEWER (the window is as new and as long).
-- Replaces, never merges. Safe to run twice and late.
local epoch, next_seq, count = tonumber(ARGV[1]), tonumber(ARGV[2]), #ARGV - 4
local head = redis.call('HMGET', KEYS[2], 'epoch', 'first', 'next', 'hw', 'erased')
local old_epoch = tonumber(head[1] or 0)
if epoch < old_epoch then
  return 'OLD'
end
if head[5] and epoch == old_epoch then
  return 'ERASED'
end
if epoch == old_epoch then
  if next_seq - 1 < tonumber(head[4] or 0) then
    return 'TOO_OLD'
  end
  local length = tonumber(head[3] or 0) - tonumber(head[2] or 0)
  if tonumber(head[3] or 0) >= next_seq and length >= count and redis.call('LLEN', KEYS[1]) == length then
    return 'NEWER'
  end
end
local bytes = 0
redis.call('DEL', KEYS[1])
redis.call('HDEL', KEYS[2], 'erased') -- of an older epoch: it was begun anew
for index = 5, #ARGV do
  redis.call('RPUSH', KEYS[1], ARGV[index])
  bytes = bytes + #ARGV[index]
end
redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'first', next_seq - count, 'next', next_seq,
  'hw', next_seq - 1, 'bytes', bytes, 'owner', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 'FILLED'
