-- Claims the right to set up the counters of a workspace anew, or keeps it for another while. Who has lost it meanwhile, with
-- all that was written under it, does not get it back.
-- KEYS  1 the marker
-- ARGV  1 the server's run_id  2 into how many cells a span is cut  3 the new generation  4 for how long the claim holds, in ms
--       5 now in ms since 1970, or empty: the server's clock  6 BEGIN or KEEP
-- Returns {"BEGUN", now}: nothing is counted here until the counters are complete or the claim runs out · {"COMPLETE"}: there
--       are counters of this server · {"CLAIMED"}: by somebody else, or by nobody any more
-- A claim is "R:" and the marker that is to be.
local marker = redis.call('GET', KEYS[1])
local mine = ARGV[1] .. ':' .. ARGV[2] .. ':'
local claim = 'R:' .. mine .. ARGV[3]
if marker and string.sub(marker, 1, #mine) == mine then
    return {'COMPLETE'}
end
if ARGV[6] == 'KEEP' and marker ~= claim then
    return {'CLAIMED'}
end
if marker and marker ~= claim and string.sub(marker, 1, #mine + 2) == 'R:' .. mine then
    return {'CLAIMED'}
end
local now = ARGV[5]
if now == '' then
    local time = redis.call('TIME')
    now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
end
redis.call('SET', KEYS[1], claim, 'PX', ARGV[4])
return {'BEGUN', now}
