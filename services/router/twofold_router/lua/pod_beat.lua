-- Extends the lease of a pod.
-- KEYS  1 the leases
-- ARGV  1 the run_id  2 the pod  3 the epoch and 4 the number of its incarnation  5 the router  6 the lease in ms
--       7 the time to live in ms  8 now in ms, where the server does not tell
-- Returns "GOOD" · "MISSING": it has no lease here, or the table is not of this server · "FENCED": it has begun another life
--       · "MOVED": another router has its link
local known = redis.call('HGET', KEYS[1], ARGV[2])
if not known or redis.call('HGET', KEYS[1], '\tmarker') ~= ARGV[1] then
    return 'MISSING'
end
local epoch, number, _, router, address = string.match(known, '^(%d+)\t(%d+)\t(%d+)\t([^\t]*)\t(.*)$')
if epoch ~= ARGV[3] or number ~= ARGV[4] then
    return 'FENCED'
end
if router ~= ARGV[5] then
    return 'MOVED'
end
local now, time = tonumber(ARGV[8]), redis.pcall('TIME')
if time[1] then
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local ends = string.format('%.0f', now + tonumber(ARGV[6]))
redis.call('HSET', KEYS[1], ARGV[2], table.concat({epoch, number, ends, router, address}, '\t'))
redis.call('PEXPIRE', KEYS[1], ARGV[7])
return 'GOOD'
