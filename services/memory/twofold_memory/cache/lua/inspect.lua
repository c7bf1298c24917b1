-- All that is held of a thread, for an audit.
-- KEYS 1 list of messages  2 head  3 list of waiting turns  4 their data
-- Returns {head, length of the list, 1 if a part of the window has no time to live, the elements, what waits}. The head is
-- {epoch, first, next, hw, owner, erased}, false for what is not there. What waits is a flat list of turn id and entry (see
-- journal.lua), in order. Changes nothing.
local head = redis.call('HMGET', KEYS[2], 'epoch', 'first', 'next', 'hw', 'owner', 'erased')
local lasting = 0
if redis.call('PTTL', KEYS[1]) == -1 or redis.call('PTTL', KEYS[2]) == -1 then
  lasting = 1
end
local waiting = {}
for _, turn_id in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
  local entry = redis.call('HGET', KEYS[4], turn_id)
  if entry then
    waiting[#waiting + 1] = turn_id
    waiting[#waiting + 1] = entry
  end
end
return {head, redis.call('LLEN', KEYS[1]), lasting, redis.call('LRANGE', KEYS[1], 0, -1), waiting}
