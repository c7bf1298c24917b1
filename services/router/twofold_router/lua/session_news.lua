-- The generation of a workspace's table of sessions, and what others than their pods have closed. If the generation is not of
-- this server, its content was lost, or is an old one: another one begins, in which nothing old is seen.
-- KEYS  1 the generation  2 what others have closed
-- ARGV  1 the run_id  2 a new generation  3 the time to live in ms  4 since when, in ms  5 now in ms, where the server does not
--       tell
-- Returns {the generation, now in ms, "<session>\n<fence>", …}: 1,000 of them at most
local now, time = ARGV[5], redis.pcall('TIME')
if time[1] then
    now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
end
local closed = redis.call('ZRANGEBYSCORE', KEYS[2], ARGV[4], '+inf', 'LIMIT', 0, 1000)
local known = redis.call('GET', KEYS[1])
local generation = ARGV[2]
if known and string.sub(known, 1, #ARGV[1] + 1) == ARGV[1] .. ':' then
    generation = string.sub(known, #ARGV[1] + 2)
else
    redis.call('SET', KEYS[1], ARGV[1] .. ':' .. generation, 'PX', ARGV[3])
end
return {generation, now, unpack(closed)}
