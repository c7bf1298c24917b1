-- A pod has its link at a router, and a lease. If the table of leases is not of this server, it is emptied before: its content
-- was lost, or is an old one, and the pods that are alive come by themselves.
-- KEYS  1 the leases  2 who has ended
-- ARGV  1 the run_id  2 the pod  3 the epoch and 4 the number of its incarnation  5 the router  6 its address  7 the lease in ms
--       8 the time to live in ms  9 now in ms, where the server does not tell
-- Returns 1, or 0 if the pod has begun another life since
if redis.call('HGET', KEYS[1], '\tmarker') ~= ARGV[1] then
    redis.call('DEL', KEYS[1], KEYS[2])
    redis.call('HSET', KEYS[1], '\tmarker', ARGV[1])
end
local now, time = tonumber(ARGV[9]), redis.pcall('TIME')
if time[1] then
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local known = redis.call('HGET', KEYS[1], ARGV[2])
if known then
    local epoch, number = string.match(known, '^(%d+)\t(%d+)\t')
    local newer = tonumber(epoch) - tonumber(ARGV[3])
    if newer == 0 then
        newer = tonumber(number) - tonumber(ARGV[4])
    end
    if newer > 0 then
        return 0
    end
    if newer < 0 then
        redis.call('HSET', KEYS[2], ARGV[2] .. '\t' .. epoch .. '\t' .. number, string.format('%.0f', now))
        redis.call('PEXPIRE', KEYS[2], ARGV[8])
    end
end
local ends = string.format('%.0f', now + tonumber(ARGV[7]))
redis.call('HSET', KEYS[1], ARGV[2], table.concat({ARGV[3], ARGV[4], ends, ARGV[5], ARGV[6]}, '\t'))
redis.call('PEXPIRE', KEYS[1], ARGV[8])
return 1
