-- The pods that have a lease.
-- KEYS  1 the leases
-- ARGV  1 the run_id  2 a pod, or empty for all  3 now in ms, where the server does not tell
-- Returns for each: the pod, the epoch and number of its incarnation, the router, its address, for how many ms its lease runs.
--         Nothing if the table is not of this server
if redis.call('HGET', KEYS[1], '\tmarker') ~= ARGV[1] then
    return {}
end
local now, time = tonumber(ARGV[3]), redis.pcall('TIME')
if time[1] then
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local leases
if ARGV[2] == '' then
    leases = redis.call('HGETALL', KEYS[1])
else
    leases = {ARGV[2], redis.call('HGET', KEYS[1], ARGV[2]) or ''}
end
local found = {}
for index = 1, #leases, 2 do
    local epoch, number, ends, router, address = string.match(leases[index + 1], '^(%d+)\t(%d+)\t(%d+)\t([^\t]*)\t(.*)$')
    if epoch and tonumber(ends) > now then
        for _, value in ipairs({leases[index], epoch, number, router, address, string.format('%.0f', tonumber(ends) - now)}) do
            found[#found + 1] = value
        end
    end
end
return found
