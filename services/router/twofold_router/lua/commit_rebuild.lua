-- The counters of a workspace are complete: they count from now on. Refused to who has lost the claim meanwhile.
-- KEYS  1 the marker
-- ARGV  1 the server's run_id  2 into how many cells a span is cut  3 the new generation  4 the marker's time to live in ms
-- Returns 1 if so, else 0.
local marker = ARGV[1] .. ':' .. ARGV[2] .. ':' .. ARGV[3]
if redis.call('GET', KEYS[1]) ~= 'R:' .. marker then
    return 0
end
redis.call('SET', KEYS[1], marker, 'PX', ARGV[4])
return 1
