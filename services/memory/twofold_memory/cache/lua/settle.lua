-- Takes turns that are in Postgres out of the journal and puts them into the window, in one step for a reader; see window.lua,
-- which stands in front of this.
-- KEYS 1 list of messages  2 head  3 list of waiting turns  4 their data
-- ARGV 1 time to live, ms  2 messages in the window at most  3 bytes in the window at most  4 owner ('' for nobody)
--      5 how many turns are done, then for each: turn id, payload hash
--      then for each that is to be put into the window, by seq: epoch, first seq, last seq, number of elements, the elements
-- Returns how many turns still wait.
-- An entry goes only if its payload hash is the same: what lies there under the same id may be another turn. Safe to run
-- twice and late.
local place = 6
for _ = 1, tonumber(ARGV[5]) do
  local turn_id, hash = ARGV[place], ARGV[place + 1]
  local entry = redis.call('HGET', KEYS[4], turn_id)
  if not entry then
    redis.call('LREM', KEYS[3], 0, turn_id)
  elseif string.sub(entry, 1, #hash + 1) == hash .. '\n' then
    redis.call('LREM', KEYS[3], 0, turn_id)
    redis.call('HDEL', KEYS[4], turn_id)
  end
  place = place + 2
end
extend_turns(KEYS[1], KEYS[2], place)
return redis.call('LLEN', KEYS[3])
