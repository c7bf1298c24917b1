-- Counts an operation within every limit at once; where one refuses, nothing is counted. Reads and decides first, writes last.
-- KEYS  1 the marker  2 the operation's record  3 the user's counters  4 the agent's  5 the workspace's
-- ARGV  1 the server's run_id  2 into how many cells a span is cut  3 the generation of the counters  4 whose operation this is
--       and what it costs, without spaces: a repeat must say the same  5 COUNT or PEEK  6 now in ms since 1970, or empty: the
--       server's clock  7 the record's time to live in ms  8 the marker's in ms  9 for each limit number of the
--       key, field, span in ms, amount (0: none), cost, 1 if it is a shadow: all in one text, which is sent in a third of the time
-- Returns {"LOST"}: no complete counters of this server · {"OTHER", their generation} · {"MISMATCH"} · {"DUPLICATE", record} ·
--       {"PEEKED" | "REFUSED" | "COUNTED", now, and for each limit: used, when to try again in ms (0: now, -1: never), when all
--       of it is free again in ms}
-- A marker is run_id:cells:generation. A record is "R", or "S" once it is settled, then ARGV 4, the time, and for each limit
-- cell:cost:used:try again:free again.
-- A counter's field holds its cells that are not empty, newest first, as "number:count number:count": cell n covers
-- [n, n + 1) · span / cells. The oldest one that reaches into the span counts in full.
local marker, mine = redis.call('GET', KEYS[1]) or '', ARGV[1] .. ':' .. ARGV[2] .. ':'
if marker ~= mine .. ARGV[3] then
    return string.sub(marker, 1, #mine) == mine and {'OTHER', string.sub(marker, #mine + 1)} or {'LOST'}
end
local peeks = ARGV[5] == 'PEEK'
if not peeks then
    local record = redis.call('GET', KEYS[2])
    if record then
        local body = string.match(record, '^%u (%S+)')
        if body == '-' or body == ARGV[4] then
            return {'DUPLICATE', record}
        end
        return {'MISMATCH'}
    end
end
local now = tonumber(ARGV[6])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local cells = tonumber(ARGV[2])
local meters, refused = {}, false
for key, field, span, limit, cost, shadow in string.gmatch(ARGV[9], '(%d) (%l+) (%d+) (%d+) (%d+) (%d)') do
    local meter = {key = KEYS[tonumber(key)], field = field, span = tonumber(span)}
    limit, cost = tonumber(limit), tonumber(cost)
    local width = meter.span / cells
    local newest, numbers, counts, used = math.floor(now / width), {}, {}, 0
    for number, count in string.gmatch(redis.call('HGET', meter.key, meter.field) or '', '(%d+):(%d+)') do
        number, count = tonumber(number), tonumber(count)
        if number > newest then -- the clock has stepped back: what is counted now is counted where it was
            newest = number
        end
        if number >= newest - cells then
            numbers[#numbers + 1], counts[#counts + 1], used = number, count, used + count
        end
    end
    meter.retry = 0
    if limit > 0 and used + cost > limit then
        if shadow ~= '1' then
            refused = true
        end
        local left, last = used, #numbers
        while last > 0 and left + cost > limit do
            left, meter.retry, last = left - counts[last], (numbers[last] + cells + 1) * width, last - 1
        end
        if cost > limit then
            meter.retry = -1
        end
    end
    meter.newest, meter.numbers, meter.counts = newest, numbers, counts
    meter.used, meter.cost, meter.width = used, cost, width
    meters[#meters + 1] = meter
end
local answer = {peeks and 'PEEKED' or refused and 'REFUSED' or 'COUNTED', now}
local counted = answer[1] == 'COUNTED'
local record, lives = {'R', ARGV[4], string.format('%.0f', now)}, {}
for _, meter in ipairs(meters) do
    local numbers, counts = meter.numbers, meter.counts
    if counted and meter.cost > 0 then
        if numbers[1] ~= meter.newest then
            table.insert(numbers, 1, meter.newest)
            table.insert(counts, 1, 0)
        end
        counts[1], meter.used = math.min(counts[1] + meter.cost, 9e15), math.min(meter.used + meter.cost, 9e15)
        local told = {}
        for place, number in ipairs(numbers) do
            told[place] = string.format('%.0f:%.0f', number, counts[place])
        end
        redis.call('HSET', meter.key, meter.field, table.concat(told, ' '))
        lives[meter.key] = math.max(lives[meter.key] or 0, 2 * meter.span)
    end
    local free = numbers[1] and (numbers[1] + cells + 1) * meter.width or now
    answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = meter.used, meter.retry, free
    record[#record + 1] = string.format(
        '%.0f:%.0f:%.0f:%.0f:%.0f', meter.newest, meter.cost, meter.used, meter.retry, free
    )
end
if counted then
    for key, lives_ms in pairs(lives) do
        redis.call('PEXPIRE', key, string.format('%.0f', lives_ms))
    end
    redis.call('SET', KEYS[2], table.concat(record, ' '), 'PX', ARGV[7])
    redis.call('PEXPIRE', KEYS[1], ARGV[8])
end
return answer
