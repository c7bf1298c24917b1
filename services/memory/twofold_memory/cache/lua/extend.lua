-- Appends committed turns to a thread's window; see window.lua, which stands in front of this.
-- KEYS 1 list of messages  2 head  3 list of waiting turns  4 their data
-- ARGV 1 time to live, ms  2 messages in the window at most  3 bytes in the window at most  4 owner ('' for nobody)
--      then for each turn, by seq: epoch, first seq, last seq, number of elements, the elements (none for a turn that was found)
-- Returns for each turn what extend_window returns.
return extend_turns(KEYS[1], KEYS[2], 5)
