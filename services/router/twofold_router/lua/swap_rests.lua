-- Tells which targets rest because they could not be dialled, and returns all that do.
-- KEYS  1 hash: target -> "<until, in milliseconds since 1970>:<failures in a row>"
-- ARGV  1 how many targets it may hold  2 how many begin to rest  then for each of these: target, for how many milliseconds, failures
--       then the targets that were reached
-- Returns for each that rests: target, for how many milliseconds still, failures
-- The server's clock; where scripts may not ask for it, all times are as if nothing had passed, and the hash ends by itself.
local time = redis.pcall('TIME')
local now = time.err and 0 or time[1] * 1000 + math.floor(time[2] / 1000)
local most, begin = tonumber(ARGV[1]), tonumber(ARGV[2])
local live, count, ended = {}, 0, {}
local kept = redis.call('HGETALL', KEYS[1])
for i = 1, #kept, 2 do
    local till, failures = string.match(kept[i + 1], '^(%d+):(%d+)$')
    if till and tonumber(till) > now then
        live[kept[i]] = {tonumber(till), tonumber(failures)}
        count = count + 1
    else
        ended[#ended + 1] = kept[i]
    end
end
for i = 3 + 3 * begin, #ARGV do
    if live[ARGV[i]] then
        live[ARGV[i]] = nil
        count = count - 1
        ended[#ended + 1] = ARGV[i]
    end
end
local added = {}
for i = 3, 2 + 3 * begin, 3 do
    local target, till, failures = ARGV[i], now + ARGV[i + 1], tonumber(ARGV[i + 2])
    if live[target] or count < most then
        if not live[target] then
            count = count + 1
        end
        live[target] = {till, failures}
        added[#added + 1] = target
        added[#added + 1] = string.format('%d:%d', till, failures)
    end
end
for i = 1, #ended do
    redis.call('HDEL', KEYS[1], ended[i])
end
if #added > 0 then
    redis.call('HSET', KEYS[1], unpack(added))
    redis.call('PEXPIRE', KEYS[1], 60000)
end
local told = {}
for target, rest in pairs(live) do
    told[#told + 1] = target
    told[#told + 1] = rest[1] - now
    told[#told + 1] = rest[2]
end
return told
