-- Puts a new session into the table, or takes over one whose holder is dead or has given it up, under a higher fence. Of two
-- calls of its pod for the same session, on two links, the newer one counts, in whichever order they come.
-- KEYS  1 the generation of the workspace's table  2 the session  3 all sessions  4 those of the user  5 of the agent  6 of the pod
-- ARGV  1 the run_id  2 the generation  3 the session  4 the user  5 the agent  6 the pod  7 its life  8 the fence of a new one
--       9 when it was opened, in ms  10 "1" to take over  11 how many sessions a user may have  12 the time to live in ms
--       13 now in ms, where the server does not tell
-- Returns {"OPENED", fence, when it was opened first} · {"HELD"}: by another pod, or under a newer call · {"UNKNOWN"}: nothing to take over
--       · {"TOO_MANY"} · {"ANEW"}: the table is of another generation
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ':' .. ARGV[2] then
    return {'ANEW'}
end
local held = redis.call('HMGET', KEYS[2], 'user', 'agent', 'pod', 'life', 'fence', 'opened', 'free')
local fence, opened = ARGV[8], ARGV[9]
if held[1] then
    local same = held[1] == ARGV[4] and held[2] == ARGV[5]
    if same and not held[7] and held[3] == ARGV[6] and held[4] == ARGV[7] and tonumber(held[5]) <= tonumber(fence) then
        redis.call('HSET', KEYS[2], 'fence', fence)
        return {'OPENED', fence, held[6]}
    end
    if ARGV[10] ~= '1' then
        return {'HELD'}
    end
    if not same then
        return {'UNKNOWN'}
    end
    local now, time = tonumber(ARGV[13]), redis.pcall('TIME')
    if time[1] then
        now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    end
    if not held[7] or now < tonumber(held[7]) then
        return {'HELD'}
    end
    fence, opened = string.format('%.0f', math.max(tonumber(held[5]) + 1, now)), held[6]
elseif ARGV[10] == '1' then
    return {'UNKNOWN'}
end
if redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[11]) then
    return {'TOO_MANY'}
end
redis.call('HSET', KEYS[2], 'user', ARGV[4], 'agent', ARGV[5], 'pod', ARGV[6], 'life', ARGV[7], 'fence', fence,
    'opened', opened, 'touched', ARGV[9])
redis.call('HDEL', KEYS[2], 'free')
for index = 3, 6 do
    redis.call('ZADD', KEYS[index], 0, ARGV[3])
end
for index = 1, 6 do
    redis.call('PEXPIRE', KEYS[index], ARGV[12])
end
return {'OPENED', fence, opened}
