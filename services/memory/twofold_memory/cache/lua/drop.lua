-- Drops a thread's window that was found to be wrong, if it is still as it was seen, and leaves it cold at what Postgres has.
-- KEYS 1 list of messages  2 head  3 list of waiting turns  4 their data
-- ARGV 1 … 6 the head as it was seen: epoch, first, next, hw, owner, erased; each behind '=', or '' for what was not there
--      7 length of the list as it was seen  8 time to live, ms
--      9 epoch  10 newest seq  11 owner ('' for nobody)  12 '1' if the thread is erased; without these four Postgres has no such
--      thread, and nothing is left
-- Returns DROPPED, or CHANGED if the window is another one by now. Late writers of an older epoch stay out.
-- What waits is not touched. Safe to run twice and late.
local head = redis.call('HMGET', KEYS[2], 'epoch', 'first', 'next', 'hw', 'owner', 'erased')
for index = 1, 6 do
  local seen = ''
  if head[index] then
    seen = '=' .. head[index]
  end
  if seen ~= ARGV[index] then
    return 'CHANGED'
  end
end
if redis.call('LLEN', KEYS[1]) ~= tonumber(ARGV[7]) then
  return 'CHANGED'
end
redis.call('DEL', KEYS[1], KEYS[2])
if ARGV[9] then
  redis.call('HSET', KEYS[2], 'epoch', ARGV[9], 'first', 0, 'next', 0, 'hw', ARGV[10], 'bytes', 0, 'owner', ARGV[11])
  if ARGV[12] == '1' then
    redis.call('HSET', KEYS[2], 'erased', 1)
  end
  redis.call('PEXPIRE', KEYS[2], ARGV[8])
end
return 'DROPPED'
