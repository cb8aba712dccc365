"""What runs inside Redis."""

from __future__ import annotations

# KEYS are rows; ARGV their values (codec, general), then how they expire. A value wins over one of another schema or
# format, and over one whose (event_timestamp, created_timestamp) is not later. Lua's numbers are doubles, so 64-bit
# integers are compared by halves: little-endian, low word first. One command reads all rows and one writes those that
# win: a command each would take twice the time. A key may come several times.
WRITE = """
local function later(old, new, at)
  local old_low, old_high = struct.unpack('<I4i4', old, at)
  local new_low, new_high = struct.unpack('<I4i4', new, at)
  if old_high ~= new_high then return old_high > new_high end
  if old_low ~= new_low then return old_low > new_low end
  return nil
end
local function stays(old, new)
  if not old or #old < 24 or old:sub(1, 8) ~= new:sub(1, 8) then return false end
  local result = later(old, new, 9)
  if result == nil then result = later(old, new, 17) end
  return result
end
local rows = #KEYS
local compared, expiry = ARGV[rows + 1] == '1', ARGV[rows + 2]
local olds, chosen, winners, stored = {}, {}, {}, 0
if compared then olds = redis.call('MGET', unpack(KEYS)) end
for i, key in ipairs(KEYS) do
  local before = chosen[key]
  local old = olds[i]
  if before then old = ARGV[before] end
  if not (compared and stays(old, ARGV[i])) then
    if not before then winners[#winners + 1] = key end
    chosen[key], stored = i, stored + 1
  end
end
if stored == 0 then return 0 end
local flat = {}
for at, key in ipairs(winners) do flat[2 * at - 1], flat[2 * at] = key, ARGV[chosen[key]] end
redis.call('MSET', unpack(flat))
for _, key in ipairs(winners) do
  if expiry == 'AFTER' then redis.call('PEXPIRE', key, ARGV[rows + 3]) end
  if expiry == 'AT' then redis.call('PEXPIREAT', key, ARGV[rows + 2 + chosen[key]]) end
end
return stored
"""

# KEYS[1] is the hash, ARGV alternates fields and the tokens they must still have.
CLEAR = """
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""
