-- The pods whose lease has run out. Nobody's has if the table is not of this server; and after a while in which no router could
-- look (it is Redis that was away then, not they), nobody's has for a lease.
-- KEYS  1 the leases
-- ARGV  1 the run_id  2 a pod, to look at this one again, or empty for all  3 the lease in ms  4 the while in ms  5 now in ms,
--       where the server does not tell
-- Returns for each of 100 at most: the pod, the epoch and number of its incarnation
if redis.call('HGET', KEYS[1], '\tmarker') ~= ARGV[1] then
    return {}
end
local now, time = tonumber(ARGV[5]), redis.pcall('TIME')
if time[1] then
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local looked, from = unpack(redis.call('HMGET', KEYS[1], '\tlooked', '\tfrom'))
if ARGV[2] == '' then
    if not looked or now - tonumber(looked) > tonumber(ARGV[4]) then
        from = string.format('%.0f', now + tonumber(ARGV[3]))
        redis.call('HSET', KEYS[1], '\tfrom', from)
    end
    redis.call('HSET', KEYS[1], '\tlooked', string.format('%.0f', now))
end
if not from or now < tonumber(from) then
    return {}
end
local leases
if ARGV[2] == '' then
    leases = redis.call('HGETALL', KEYS[1])
else
    leases = {ARGV[2], redis.call('HGET', KEYS[1], ARGV[2]) or ''}
end
local found = {}
for index = 1, #leases, 2 do
    local epoch, number, ends = string.match(leases[index + 1], '^(%d+)\t(%d+)\t(%d+)\t')
    if epoch and tonumber(ends) <= now and #found < 300 then
        for _, value in ipairs({leases[index], epoch, number}) do
            found[#found + 1] = value
        end
    end
end
return found
