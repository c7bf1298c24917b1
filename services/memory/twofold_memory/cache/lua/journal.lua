-- Puts a turn into a thread's journal, behind all that waits there.
-- KEYS 1 list of messages  2 head  3 list of waiting turns  4 their data
-- ARGV 1 turn id  2 payload hash  3 worker  4 when, ms since 1970 (for people; nothing is decided by it)
--      5 payload  6 turns in the list at most  7 bytes of the data at most
--      8 the turn it must stand behind ('' for none)
--      9 '' for a new turn; for a copy that is put back '=' and the ids of its former prevs, separated by tabs
-- Returns {'OK', present before (0 or 1), prevs separated by tabs}, or {'ERASED'}, {'CONFLICT'} (another payload under this
-- id), {'FULL'}.
-- An entry names everything that waited when it came (prevs): it goes into Postgres only when all of those are there. Those
-- that themselves wait for this turn are left out (it may have been lost and come back behind them).
-- An entry is: hash \n worker \n when \n prevs separated by tabs \n payload. Ids hold no control characters.
-- These keys have no time to live: what waits must not expire. Safe to run twice and late.
local turn_id, hash = ARGV[1], ARGV[2]
if redis.call('HGET', KEYS[2], 'erased') then
  return {'ERASED'}
end

local function split(entry)
  local fields, place = {}, 1
  for index = 1, 4 do
    local stop = string.find(entry, '\n', place, true)
    fields[index] = string.sub(entry, place, stop - 1)
    place = stop + 1
  end
  return fields
end

local function listed(prevs)
  local ids = {}
  for id in string.gmatch(prevs, '[^\t]+') do
    ids[#ids + 1] = id
  end
  return ids
end

local waiting = redis.call('LRANGE', KEYS[3], 0, -1)
local present = redis.call('HGET', KEYS[4], turn_id)
if present then
  local fields = split(present)
  if fields[1] ~= hash then
    return {'CONFLICT'}
  end
  local is_listed = false
  for _, id in ipairs(waiting) do
    is_listed = is_listed or id == turn_id
  end
  if not is_listed then
    redis.call('RPUSH', KEYS[3], turn_id)
  end
  return {'OK', 1, fields[4]}
end

if #waiting >= tonumber(ARGV[6]) then
  return {'FULL'}
end
local bytes, prevs_of = #ARGV[5], {}
for _, id in ipairs(waiting) do
  local entry = redis.call('HGET', KEYS[4], id)
  if entry then
    bytes = bytes + #entry
    prevs_of[id] = listed(split(entry)[4])
  end
end
if bytes > tonumber(ARGV[7]) then
  return {'FULL'}
end

local prevs
if ARGV[9] ~= '' then
  prevs = string.sub(ARGV[9], 2)
else
  local later = {[turn_id] = true}
  repeat
    local grown = false
    for id, ids in pairs(prevs_of) do
      if not later[id] then
        for _, prev in ipairs(ids) do
          if later[prev] then
            later[id], grown = true, true
            break
          end
        end
      end
    end
  until not grown
  local ids, seen = {}, {}
  for _, id in ipairs(waiting) do
    if not later[id] then
      ids[#ids + 1], seen[id] = id, true
    end
  end
  if ARGV[8] ~= '' and not later[ARGV[8]] and not seen[ARGV[8]] then
    ids[#ids + 1] = ARGV[8]
  end
  prevs = table.concat(ids, '\t')
end
redis.call('RPUSH', KEYS[3], turn_id)
redis.call('HSET', KEYS[4], turn_id, table.concat({hash, ARGV[3], ARGV[4], prevs, ARGV[5]}, '\n'))
redis.call('PERSIST', KEYS[3])
redis.call('PERSIST', KEYS[4])
return {'OK', 0, prevs}
