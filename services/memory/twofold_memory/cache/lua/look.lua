-- The newest messages of a thread's window, and what waits in its journal.
-- KEYS 1 list of messages  2 head  3 list of waiting turns  4 their data
-- ARGV 1 how many messages at most (integer)
-- Returns {window, waiting}. The window is nil if it is cold, else {epoch, first, next, owner, {elements in order}}, the elements
-- ending at next - 1. What waits is false for nothing, else a flat list of turn id and entry (see journal.lua), in order.
-- Changes nothing.
local waiting = redis.call('LRANGE', KEYS[3], 0, -1)
local entries = false
if #waiting > 0 then
  entries = {}
  for _, turn_id in ipairs(waiting) do
    local entry = redis.call('HGET', KEYS[4], turn_id)
    if entry then
      entries[#entries + 1] = turn_id
      entries[#entries + 1] = entry
    end
  end
end
local head = redis.call('HMGET', KEYS[2], 'epoch', 'first', 'next', 'owner', 'erased')
if not head[1] or head[3] == '0' or head[5] then
  return {false, entries}
end
if redis.call('LLEN', KEYS[1]) ~= tonumber(head[3]) - tonumber(head[2]) then
  return {false, entries} -- one of the two keys was evicted: not a window any more
end
head[4] = head[4] or ''
head[5] = redis.call('LRANGE', KEYS[1], -tonumber(ARGV[1]), -1)
return {head, entries}
