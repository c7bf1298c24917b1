-- Takes a session from its holder, who is dead or gives it up: nobody finds it any more, but it may be taken over for a while.
-- KEYS  1 the generation of the workspace's table  2 the session  3 all sessions  4 those of the user  5 of the agent  6 of the pod
-- ARGV  1 the run_id  2 the generation  3 the session  4 the pod  5 its life  6 the fence  7 in how many ms it may be taken over
--       8 for how many ms after that  9 now in ms, where the server does not tell
-- Returns "FREED" · "LOST": it is not held so · "ANEW": the table is of another generation
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ':' .. ARGV[2] then
    return 'ANEW'
end
local held = redis.call('HMGET', KEYS[2], 'pod', 'life', 'fence', 'free')
if held[1] ~= ARGV[4] or held[2] ~= ARGV[5] or held[3] ~= ARGV[6] or held[4] then
    return 'LOST'
end
local now, time = tonumber(ARGV[9]), redis.pcall('TIME')
if time[1] then
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
redis.call('HSET', KEYS[2], 'free', string.format('%.0f', now + tonumber(ARGV[7])))
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', tonumber(ARGV[7]) + tonumber(ARGV[8])))
for index = 3, 6 do
    redis.call('ZREM', KEYS[index], ARGV[3])
end
return 'FREED'
