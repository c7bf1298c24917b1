-- Appends a committed turn to a thread's window, if the window is contiguous with it; else leaves the window cold.
-- KEYS 1 list of messages  2 head
-- ARGV 1 epoch  2 first seq of the turn  3 last seq  4 time to live, ms  5 messages in the window at most
--      6 bytes in the window at most  7 owner ('' for nobody)
--      8… the elements first..last, or none for a turn that was found stored already
-- Returns OK, DUP (held already), COLD (no window to extend), GAP (window dropped), STALE (of an older epoch).
-- Safe to run twice and late.
local epoch, first, last = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local ttl, length_max, bytes_max, count = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), #ARGV - 7
local head = redis.call('HMGET', KEYS[2], 'epoch', 'first', 'next', 'hw', 'bytes')

local function leave_cold(answer, hw)
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'first', 0, 'next', 0, 'hw', hw, 'bytes', 0, 'owner', ARGV[7])
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

local bytes = start < next_seq and tonumber(head[5] or 0) or 0
for index = 8 + next_seq - first, #ARGV do
  redis.call('RPUSH', KEYS[1], ARGV[index])
  bytes = bytes + #ARGV[index]
end
next_seq = last + 1

local function too_large()
  return next_seq - start > length_max or bytes > bytes_max
end

local function begins_a_turn()
  local letter = string.sub(redis.call('LINDEX', KEYS[1], 0), 1, 1)
  return letter == 't' or letter == 's'
end

-- The oldest turns go, whole; of the newest turn only what does not fit by itself.
local trimmed = false
while start < last and (too_large() or (trimmed and start < first and not begins_a_turn())) do
  bytes = bytes - #redis.call('LPOP', KEYS[1])
  start = start + 1
  trimmed = true
end
redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'first', start, 'next', next_seq, 'hw', hw, 'bytes', bytes, 'owner', ARGV[7])
redis.call('PEXPIRE', KEYS[2], ttl)
redis.call('PEXPIRE', KEYS[1], ttl)
return 'OK'
