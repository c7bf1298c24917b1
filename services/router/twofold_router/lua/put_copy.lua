-- Keeps a copy, unless there is one that was read at the same or a later revision. What is no copy gives way.
-- KEYS  1 the copy
-- ARGV  1 the revision in 16 digits  2 the value, which begins with it  3 its time to live in milliseconds
-- Returns 1 if it was kept, else 0.
local known = redis.pcall('GETRANGE', KEYS[1], 0, 15)
if type(known) == 'string' and #known == 16 and not string.find(known, '%D') and known >= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
