-- Shared by `extend` and `settle`: put in front of either, since a script can call no other.
-- ARGV 1 time to live, ms  2 messages in the window at most  3 bytes in the window at most  4 owner ('' for nobody)
--
-- extend_window(messages, head, turn): appends a committed turn to a thread's window, if the window is contiguous with it;
-- else leaves the window cold. `turn` has epoch, first, last, ttl (ms), length_max (messages), bytes_max, owner ('' for
-- nobody), and elements: first..last, or none for a turn that was found stored already.
-- Returns OK, DUP (held already), COLD (no window to extend), GAP (window dropped), STALE (of an older epoch), ERASED.
-- Safe to run twice and late.
local function extend_window(messages, head_key, turn)
  local head = redis.call('HMGET', head_key, 'epoch', 'first', 'next', 'hw', 'bytes', 'erased')
  local first, last, count = turn.first, turn.last, #turn.elements
  if head[6] then
    return 'ERASED'
  end

  local function leave_cold(answer, hw)
    redis.call('DEL', messages)
    redis.call('HSET', head_key, 'epoch', turn.epoch, 'first', 0, 'next', 0, 'hw', hw, 'bytes', 0, 'owner', turn.owner)
    redis.call('PEXPIRE', head_key, turn.ttl)
    return answer
  end

  local old_epoch = tonumber(head[1] or 0)
  if turn.epoch < old_epoch then
    return 'STALE'
  end
  local start, next_seq = tonumber(head[2] or 0), tonumber(head[3] or 0)
  local hw = math.max(last, turn.epoch == old_epoch and tonumber(head[4] or 0) or 0)
  if not head[1] and first == 1 and count > 0 then
    redis.call('DEL', messages) -- a list without its head is no window
    start, next_seq = 1, 1      -- the whole thread is known
  elseif turn.epoch > old_epoch or next_seq == 0 or redis.call('LLEN', messages) ~= next_seq - start then
    return leave_cold('COLD', hw)
  end
  if next_seq > last then
    return 'DUP'
  end
  if count == 0 or next_seq < first then
    return leave_cold('GAP', hw)
  end

  local bytes = start < next_seq and tonumber(head[5] or 0) or 0
  for index = 1 + next_seq - first, count do
    redis.call('RPUSH', messages, turn.elements[index])
    bytes = bytes + #turn.elements[index]
  end
  next_seq = last + 1

  local function too_large()
    return next_seq - start > turn.length_max or bytes > turn.bytes_max
  end

  local function begins_a_turn()
    local letter = string.sub(redis.call('LINDEX', messages, 0), 1, 1)
    return letter == 't' or letter == 's'
  end

  -- The oldest turns go, whole; of the newest turn only what does not fit by itself.
  local trimmed = false
  while start < last and (too_large() or (trimmed and start < first and not begins_a_turn())) do
    bytes = bytes - #redis.call('LPOP', messages)
    start = start + 1
    trimmed = true
  end
  redis.call('HSET', head_key, 'epoch', turn.epoch, 'first', start, 'next', next_seq, 'hw', hw, 'bytes', bytes,
    'owner', turn.owner)
  redis.call('PEXPIRE', head_key, turn.ttl)
  redis.call('PEXPIRE', messages, turn.ttl)
  return 'OK'
end

-- extend_turns(messages, head, place): the same for all turns that stand in ARGV from a place on: epoch, first seq, last seq,
-- number of elements, the elements. Returns the list of answers.
local function extend_turns(messages, head_key, place)
  local answers = {}
  while place <= #ARGV do
    local count = tonumber(ARGV[place + 3])
    local elements = {}
    for index = 1, count do
      elements[index] = ARGV[place + 3 + index]
    end
    answers[#answers + 1] = extend_window(messages, head_key, {
      epoch = tonumber(ARGV[place]),
      first = tonumber(ARGV[place + 1]),
      last = tonumber(ARGV[place + 2]),
      ttl = ARGV[1],
      length_max = tonumber(ARGV[2]),
      bytes_max = tonumber(ARGV[3]),
      owner = ARGV[4],
      elements = elements,
    })
    place = place + 4 + count
  end
  return answers
end
