-- Reads a log behind a place; from its beginning if it is of another epoch than the reader's.
-- KEYS  1 head  2 stream  3 request ids, all of one log
-- ARGV  1 run_id of this server  2 name of a new epoch, or '' if none shall be begun  3 time to live in milliseconds
--       4 channel for the nudge  5 epoch of the reader  6 last offset that it knows, or -1: no entries are wanted
--       7 entries at most  8 bytes at most, but for the first entry
-- Returns {epoch or '', oldest offset that is held, newest offset, 1 if there are no more entries than these, entries:
-- offset, bytes, offset, bytes …}; who follows is told 0 for the oldest offset if there is nothing behind its place
local head = redis.call('HMGET', KEYS[1], 'run_id', 'epoch', 'n')
local epoch, n = head[2], tonumber(head[3])
local known = tonumber(ARGV[6])
if ARGV[2] ~= '' then
    -- Without a run_id a server that was rolled back shows only by knowing less than it has told.
    if not epoch or not n or head[1] ~= ARGV[1] or (epoch == ARGV[5] and known > n) then
        epoch, n = ARGV[2], 0
        redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
        redis.call('HSET', KEYS[1], 'run_id', ARGV[1], 'epoch', epoch, 'n', 0, 'bytes', 0, 'requests', 0)
        redis.call('PEXPIRE', KEYS[1], ARGV[3])
        redis.call('PUBLISH', ARGV[4], '0 ' .. epoch)
    elseif redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) / 2 then
        -- While somebody listens the log stays: should it end, its next event would come as a reset.
        for _, key in ipairs(KEYS) do
            redis.call('PEXPIRE', key, ARGV[3])
        end
    end
elseif not epoch or not n then
    return { '', 1, 0, 1, {} }
end

local from = epoch == ARGV[5] and known or 0
if ARGV[2] ~= '' and known >= 0 and from >= n then
    return { epoch, 0, n, 1, {} }
end
local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
local first = oldest[1] and tonumber(string.match(oldest[1][1], '^(%d+)')) or n + 1
if known < 0 then
    return { epoch, first, n, 1, {} }
end
local entries, count, bytes = {}, 0, 0
local count_max, bytes_max = tonumber(ARGV[7]), tonumber(ARGV[8])
while true do
    local block = math.min(32, count_max - count + 1)
    local found = redis.call('XRANGE', KEYS[2], string.format('%.0f', from + 1), '+', 'COUNT', block)
    for _, entry in ipairs(found) do
        if count == count_max or (count > 0 and bytes + #entry[2][2] > bytes_max) then
            return { epoch, first, n, 0, entries }
        end
        count = count + 1
        bytes = bytes + #entry[2][2]
        from = tonumber(string.match(entry[1], '^(%d+)'))
        entries[2 * count - 1] = from
        entries[2 * count] = entry[2][2]
    end
    if #found < block then
        return { epoch, first, n, 1, entries }
    end
end
