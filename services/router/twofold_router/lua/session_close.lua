-- Removes a session, if this life of this pod holds it under this fence: compared and deleted in one step.
-- KEYS  1 the generation of the workspace's table  2 the session  3 all sessions  4 those of the user  5 of the agent  6 of the pod
--       7 what others have closed
-- ARGV  1 the run_id  2 the generation  3 the session  4 the pod  5 its life  6 the fence
--       7 for how long it is remembered in ms that it was closed, 0 not at all: its own pod knows  8 now in ms, where the server
--       does not tell
-- Returns "CLOSED" · "LOST": it is not held so · "ANEW": the table is of another generation
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ':' .. ARGV[2] then
    return 'ANEW'
end
local held = redis.call('HMGET', KEYS[2], 'pod', 'life', 'fence', 'free')
if held[1] ~= ARGV[4] or held[2] ~= ARGV[5] or held[3] ~= ARGV[6] or held[4] then
    return 'LOST'
end
redis.call('DEL', KEYS[2])
for index = 3, 6 do
    redis.call('ZREM', KEYS[index], ARGV[3])
end
local kept = tonumber(ARGV[7])
if kept > 0 then
    local now, time = tonumber(ARGV[8]), redis.pcall('TIME')
    if time[1] then
        now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    end
    redis.call('ZADD', KEYS[7], string.format('%.0f', now), ARGV[3] .. '\n' .. ARGV[6])
    redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', string.format('%.0f', now - kept))
    redis.call('PEXPIRE', KEYS[7], ARGV[7])
end
return 'CLOSED'
