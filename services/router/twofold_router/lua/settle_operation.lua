-- Puts what an operation really cost into the cells that it was counted in, once; or takes all of it back, as if it had never
-- been; or adds one that was counted elsewhere. Never refuses.
-- KEYS  1 the marker  2 the operation's record  3 the user's counters  4 the agent's  5 the workspace's
-- ARGV  1 the server's run_id  2 into how many cells a span is cut  3 the generation of the counters  4 whose operation this is
--       and what it cost, without spaces, with one "/" between  5 SETTLE, RELEASE or ADD  6 now in ms since 1970, or empty: the server's clock  7 where there is no
--       record: when it was, in ms, or empty: now  8 the record's time to live in ms  9 the marker's in ms  10… for each limit:
--       number of the key, field, span in ms, cost
-- Returns {"LOST"} · {"OTHER", generation}: see count_operation.lua · {"MISMATCH"} · {"DUPLICATE", its time}: it was settled,
--       or is known and need not be added · {"SETTLED", its time} · {"ADDED", its time}: there was no record · {"RELEASED"} ·
--       {"NOTHING"}: there was nothing to take back
-- Records and counters: see count_operation.lua.
local marker, mine = redis.call('GET', KEYS[1]) or '', ARGV[1] .. ':' .. ARGV[2] .. ':'
if marker ~= mine .. ARGV[3] then
    return string.sub(marker, 1, #mine) == mine and {'OTHER', string.sub(marker, #mine + 1)} or {'LOST'}
end
local releases, adds = ARGV[5] == 'RELEASE', ARGV[5] == 'ADD'
local record, words = redis.call('GET', KEYS[2]), {}
if record then
    for word in string.gmatch(record, '%S+') do
        words[#words + 1] = word
    end
    if words[2] ~= '-' and string.match(words[2], '^[^/]+') ~= string.match(ARGV[4], '^[^/]+') then
        return {'MISMATCH'}
    end
    if words[1] == 'S' or adds then
        return {'DUPLICATE', words[3]}
    end
elseif releases then
    return {'NOTHING'}
end
local now = tonumber(ARGV[6])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local at_ms = tonumber(words[3] or ARGV[7]) or now
local cells, place, lives = tonumber(ARGV[2]), 4, {}
local added = {'R', ARGV[4], string.format('%.0f', at_ms)}
for at = 10, #ARGV, 4 do
    local key, field, span = KEYS[tonumber(ARGV[at])], ARGV[at + 1], tonumber(ARGV[at + 2])
    local width = span / cells
    local cell, reserved = string.match(words[place] or '', '^(%d+):(%d+)')
    place = place + 1
    local change = tonumber(ARGV[at + 3]) - (tonumber(reserved) or 0)
    if releases then
        change = -(tonumber(reserved) or 0)
    end
    if change ~= 0 then
        local newest, numbers, counts = math.floor(now / width), {}, {}
        for number, count in string.gmatch(redis.call('HGET', key, field) or '', '(%d+):(%d+)') do
            newest = math.max(newest, tonumber(number))
            numbers[#numbers + 1] = tonumber(number)
            counts[tonumber(number)] = tonumber(count)
        end
        -- One that is told of ahead of the clock here stands in the newest cell, and so says its record.
        cell = math.min(tonumber(cell) or math.floor(at_ms / width), newest)
        if not counts[cell] then
            numbers[#numbers + 1] = cell
        end
        counts[cell] = math.max(0, math.min((counts[cell] or 0) + change, 9e15))
        table.sort(numbers, function(one, other) return one > other end)
        local told = {}
        for _, number in ipairs(numbers) do
            if number >= newest - cells and counts[number] > 0 then
                told[#told + 1] = string.format('%.0f:%.0f', number, counts[number])
            end
        end
        redis.call('HSET', key, field, table.concat(told, ' '))
        lives[key] = math.max(lives[key] or 0, 2 * span)
    end
    if adds then
        added[#added + 1] = string.format('%.0f:%s:0:0:0', cell or math.floor(math.min(at_ms, now) / width), ARGV[at + 3])
    end
end
for key, lives_ms in pairs(lives) do
    redis.call('PEXPIRE', key, string.format('%.0f', lives_ms))
end
redis.call('PEXPIRE', KEYS[1], ARGV[9])
if releases then
    redis.call('DEL', KEYS[2])
    return {'RELEASED'}
end
words[1], words[2], words[3] = 'S', words[2] or ARGV[4], string.format('%.0f', at_ms)
redis.call('SET', KEYS[2], table.concat(adds and added or words, ' '), 'PX', ARGV[8])
return {record and 'SETTLED' or 'ADDED', string.format('%.0f', at_ms)}
