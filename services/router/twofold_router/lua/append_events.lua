-- Appends events to a log, all or none, drops its oldest ones, and nudges those who listen.
-- KEYS  1 head  2 stream  3 request ids, all of one log
-- ARGV  1 run_id of this server  2 name of a new epoch  3 time to live in milliseconds  4 entries that are kept at most
--       5 bytes that are kept at most  6 request id hashed, or ''  7 hash of the events  8 request ids that are kept at most
--       9 channel for the nudge  10 … the entries
-- Returns {what: 0 appended, 1 appended to a new epoch, 2 known already, 3 known with other events; epoch; first; last offset}
local head = redis.call('HMGET', KEYS[1], 'run_id', 'epoch', 'n', 'bytes', 'requests')
local epoch, n, bytes, requests = head[2], tonumber(head[3]), tonumber(head[4]), tonumber(head[5])
local begins = not epoch or not n or head[1] ~= ARGV[1]
local request = ARGV[6]
if begins then
    -- No log, or one that another process of Redis wrote: what is there may be older than what was told.
    epoch, n, bytes, requests = ARGV[2], 0, 0, 0
elseif request ~= '' then
    local known = redis.call('HGET', KEYS[3], 'k' .. request)
    if known then
        local first, last, events = string.match(known, '^(%d+) (%d+) (.*)$')
        return { events == ARGV[7] and 2 or 3, epoch, tonumber(first), tonumber(last) }
    end
end

local first = n + 1
local length = 0
local fresh = 0
if begins then
    redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
else
    length = redis.call('XLEN', KEYS[2])
end
if length == 0 then
    bytes = 0
end
-- The head first: should anything fail behind it, numbers are missing, and none is given twice.
redis.call('HSET', KEYS[1], 'run_id', ARGV[1], 'epoch', epoch, 'n', string.format('%.0f', n + #ARGV - 9))
for index = 10, #ARGV do
    n = n + 1
    fresh = fresh + #ARGV[index]
    redis.call('XADD', KEYS[2], string.format('%.0f-0', n), 'e', ARGV[index])
end
bytes = bytes + fresh
length = length + #ARGV - 9

-- What was just appended is kept in any case.
local entries_max = math.max(tonumber(ARGV[4]), #ARGV - 9)
local bytes_max = math.max(tonumber(ARGV[5]), fresh)
while length > entries_max or bytes > bytes_max do
    local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 64)
    if #oldest == 0 then
        break
    end
    local through
    for _, entry in ipairs(oldest) do
        if length <= entries_max and bytes <= bytes_max then
            break
        end
        through = entry[1]
        length = length - 1
        bytes = bytes - #entry[2][2]
    end
    redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f-0', tonumber(string.match(through, '^(%d+)')) + 1))
end

if request ~= '' then
    local slot = 's' .. requests % tonumber(ARGV[8])
    local oldest = redis.call('HGET', KEYS[3], slot)
    if oldest then
        redis.call('HDEL', KEYS[3], 'k' .. oldest)
    end
    local known = string.format('%.0f %.0f ', first, n) .. ARGV[7]
    redis.call('HSET', KEYS[3], slot, request, 'k' .. request, known)
    requests = requests + 1
end
redis.call('HSET', KEYS[1], 'bytes', string.format('%.0f', bytes), 'requests', string.format('%.0f', requests))
for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, ARGV[3])
end
redis.call('PUBLISH', ARGV[9], string.format('%.0f ', n) .. epoch)
return { begins and 1 or 0, epoch, first, n }
