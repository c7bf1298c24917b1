-- Appends a committed turn to a thread's window; see window.lua, which stands in front of this.
-- KEYS 1 list of messages  2 head  3 list of waiting turns  4 their data
-- ARGV 1 epoch  2 first seq of the turn  3 last seq  4 time to live, ms  5 messages in the window at most
--      6 bytes in the window at most  7 owner ('' for nobody)
--      8… the elements first..last, or none for a turn that was found stored already
-- Returns what extend_window returns.
return extend_window(KEYS[1], KEYS[2], {
  epoch = tonumber(ARGV[1]),
  first = tonumber(ARGV[2]),
  last = tonumber(ARGV[3]),
  ttl = ARGV[4],
  length_max = tonumber(ARGV[5]),
  bytes_max = tonumber(ARGV[6]),
  owner = ARGV[7],
  elements = {unpack(ARGV, 8)},
})
