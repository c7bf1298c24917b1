-- Puts a route that was read from the registry, unless somebody else has put one since the caller looked.
--
-- Stamps are opaque here, so "newer" cannot be computed. What can be known: a caller that looked, asked the registry and
-- now finds another stamp than it saw may hold the older reading of the two, and gives way.
--
-- KEYS[1]  string  the route of one agent
-- ARGV[1]  bytes   what the value begins with that the caller saw (version and stamp, or all of it); empty if there was none
-- ARGV[2]  bytes   the value to put
-- ARGV[3]  integer milliseconds to live, 1 or more
-- Returns  1 if it was put, 0 if it gave way
local seen = ARGV[1]
if seen == '' then
  if redis.call('EXISTS', KEYS[1]) == 1 then
    return 0
  end
elseif redis.call('GETRANGE', KEYS[1], 0, #seen - 1) ~= seen then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
