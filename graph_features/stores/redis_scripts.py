"""What runs inside Redis."""

from __future__ import annotations

# KEYS are rows; ARGV their values (codec, general), then how they expire. A value wins over one of another schema or
# format, and over one whose (event_timestamp, created_timestamp) is not later. Lua's numbers are doubles, so 64-bit
# integers are compared by halves: little-endian, low word first.
WRITE = """
local function later(old, new, at)
  local old_low, old_high = struct.unpack('<I4i4', old, at)
  local new_low, new_high = struct.unpack('<I4i4', new, at)
  if old_high ~= new_high then return old_high > new_high end
  if old_low ~= new_low then return old_low > new_low end
  return nil
end
local stored, rows = 0, #KEYS
local compared, expiry = ARGV[rows + 1] == '1', ARGV[rows + 2]
for i, key in ipairs(KEYS) do
  local new, old = ARGV[i], ''
  if compared then old = redis.call('GETRANGE', key, 0, 23) end
  local keep = false
  if #old == 24 and old:sub(1, 8) == new:sub(1, 8) then
    keep = later(old, new, 9)
    if keep == nil then keep = later(old, new, 17) end
  end
  if not keep then
    redis.call('SET', key, new)
    if expiry == 'AFTER' then redis.call('PEXPIRE', key, ARGV[rows + 3]) end
    if expiry == 'AT' then redis.call('PEXPIREAT', key, ARGV[rows + 2 + i]) end
    stored = stored + 1
  end
end
return stored
"""

# KEYS[1] is the hash, ARGV alternates fields and the tokens they must still have.
CLEAR = """
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""
