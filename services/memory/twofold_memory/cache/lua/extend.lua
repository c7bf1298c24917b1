-- Appends a committed turn to a thread's window, if the window is contiguous with it; else leaves the window cold.
-- KEYS 1 list of messages  2 head
-- ARGV 1 epoch  2 first seq of the turn  3 last seq  4 time to live, ms  5 messages in the window at most
--      6 owner ('' for nobody)  7… the elements first..last, or none for a turn that was found stored already
-- Returns OK, DUP (held already), COLD (no window to extend), GAP (window dropped), STALE (of an older epoch).
-- Safe to run twice and late.
local epoch, first, last = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local ttl, cap, count = ARGV[4], tonumber(ARGV[5]), #ARGV - 6
local head = redis.call('HMGET', KEYS[2], 'epoch', 'first', 'next', 'hw')

local function leave_cold(answer, hw)
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'first', 0, 'next', 0, 'hw', hw, 'owner', ARGV[6])
  redis.call('PEXPIRE', KEYS[2], ttl)
  return answer
end

local old_epoch = tonumber(head[1] or 0)
if epoch < old_epoch then
  return 'STALE'
end
local start, next_seq = tonumber(head[2] or 0), tonumber(head[3] or 0)
local hw = math.max(last, epoch == old_epoch and tonumber(head[4] or 0) or 0)
if not head[1] and first == 1 and count > 0 then
  redis.call('DEL', KEYS[1]) -- a list without its head is no window
  start, next_seq = 1, 1     -- the whole thread is known
elseif epoch > old_epoch or next_seq == 0 or redis.call('LLEN', KEYS[1]) ~= next_seq - start then
  return leave_cold('COLD', hw)
end
if next_seq > last then
  return 'DUP'
end
if count == 0 or next_seq < first then
  return leave_cold('GAP', hw)
end

for index = 7 + next_seq - first, #ARGV do
  redis.call('RPUSH', KEYS[1], ARGV[index])
end
next_seq = last + 1
local surplus = next_seq - start - cap
if surplus > 0 then
  -- cut at the start of a turn ('t', 's'), unless the newest turn alone is larger than the window
  local cut = surplus
  local kept = redis.call('LRANGE', KEYS[1], surplus, -1)
  for index = 1, #kept do
    local letter = string.sub(kept[index], 1, 1)
    if letter == 't' or letter == 's' then
      cut = surplus + index - 1
      break
    end
  end
  redis.call('LTRIM', KEYS[1], cut, -1)
  start = start + cut
end
redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'first', start, 'next', next_seq, 'hw', hw, 'owner', ARGV[6])
redis.call('PEXPIRE', KEYS[2], ttl)
redis.call('PEXPIRE', KEYS[1], ttl)
return 'OK'
