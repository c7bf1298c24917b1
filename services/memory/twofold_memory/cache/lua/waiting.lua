-- What waits in a thread's journal.
-- KEYS 1 list of messages  2 head  3 list of waiting turns  4 their data
-- Returns a flat list of turn id and entry (see journal.lua), in order. Changes nothing.
local found = {}
for _, turn_id in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
  local entry = redis.call('HGET', KEYS[4], turn_id)
  if entry then
    found[#found + 1] = turn_id
    found[#found + 1] = entry
  end
end
return found
