-- Puts a session that a pod holds into the table, unless it is held under a higher fence, or was closed by others.
-- KEYS  1 the generation of the workspace's table  2 the session  3 all sessions  4 those of the user  5 of the agent  6 of the pod
--       7 what others have closed
-- ARGV  1 the run_id  2 the generation  3 the session  4 the user  5 the agent  6 the pod  7 its life  8 the fence
--       9 when it was opened, in ms  10 when it was touched last, in ms  11 the time to live in ms
-- Returns "KEPT" · "LOST" · "ANEW": the table is of another generation
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ':' .. ARGV[2] then
    return 'ANEW'
end
if redis.call('ZSCORE', KEYS[7], ARGV[3] .. '\n' .. ARGV[8]) then
    return 'LOST'
end
local held = redis.call('HMGET', KEYS[2], 'pod', 'life', 'fence', 'free')
if held[1] then
    local mine = held[1] == ARGV[6] and held[2] == ARGV[7] and not held[4]
    local theirs, ours = tonumber(held[3]), tonumber(ARGV[8])
    if theirs > ours or theirs == ours and not mine then
        return 'LOST'
    end
end
redis.call('HSET', KEYS[2], 'user', ARGV[4], 'agent', ARGV[5], 'pod', ARGV[6], 'life', ARGV[7], 'fence', ARGV[8],
    'opened', ARGV[9], 'touched', ARGV[10])
redis.call('HDEL', KEYS[2], 'free')
for index = 3, 6 do
    redis.call('ZADD', KEYS[index], 0, ARGV[3])
end
for index = 1, 6 do
    redis.call('PEXPIRE', KEYS[index], ARGV[11])
end
return 'KEPT'
