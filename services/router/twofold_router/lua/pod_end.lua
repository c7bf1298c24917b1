-- A life of a pod has ended: it has no lease any more, and is to be cleared up after.
-- KEYS  1 the leases  2 who has ended
-- ARGV  1 the pod  2 the epoch and 3 the number of its incarnation  4 now in ms, for people  5 the time to live in ms
-- Returns 1 if it had a lease, else 0
redis.call('HSET', KEYS[2], ARGV[1] .. '\t' .. ARGV[2] .. '\t' .. ARGV[3], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and string.sub(known, 1, #ARGV[2] + #ARGV[3] + 2) == ARGV[2] .. '\t' .. ARGV[3] .. '\t' then
    return redis.call('HDEL', KEYS[1], ARGV[1])
end
return 0
