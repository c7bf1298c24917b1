-- Notes that a session is in use, if this life of this pod holds it under this fence.
-- KEYS  1 the generation of the workspace's table  2 the session
-- ARGV  1 the run_id  2 the generation  3 the pod  4 its life  5 the fence  6 now in ms, by the router's clock
-- Returns "KEPT" · "LOST" · "ANEW": the table is of another generation
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ':' .. ARGV[2] then
    return 'ANEW'
end
local held = redis.call('HMGET', KEYS[2], 'pod', 'life', 'fence', 'free')
if held[1] ~= ARGV[3] or held[2] ~= ARGV[4] or held[3] ~= ARGV[5] or held[4] then
    return 'LOST'
end
redis.call('HSET', KEYS[2], 'touched', ARGV[6])
return 'KEPT'
