-- The newest messages of a thread's window.
-- KEYS 1 list of messages  2 head
-- ARGV 1 how many at most (integer)
-- Returns nil if the window is cold, else {epoch, first, next, owner, {elements in order}}, the elements ending at next - 1.
-- Changes nothing.
local head = redis.call('HMGET', KEYS[2], 'epoch', 'first', 'next', 'owner')
if not head[1] or head[3] == '0' then
  return nil
end
if redis.call('LLEN', KEYS[1]) ~= tonumber(head[3]) - tonumber(head[2]) then
  return nil -- one of the two keys was evicted: not a window any more
end
head[4] = head[4] or ''
head[5] = redis.call('LRANGE', KEYS[1], -tonumber(ARGV[1]), -1)
return head
