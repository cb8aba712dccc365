-- Every statement of the online store on SQLite. {keys} becomes as many question marks as there are keys.

-- name: schema
CREATE TABLE IF NOT EXISTS online_rows (
    key BLOB PRIMARY KEY,         -- project, view and entity key: see stores/keys.py
    event_ms INTEGER NOT NULL,    -- in the unit of the value's own header
    created_us INTEGER NOT NULL,
    value BLOB NOT NULL           -- packed: see stores/codec.py
);
CREATE TABLE IF NOT EXISTS pending_marks (
    key BLOB PRIMARY KEY,
    token TEXT NOT NULL
) WITHOUT ROWID;

-- name: write
-- A value wins over one of another feature set or format (its first 8 bytes), and over one that is not later.
INSERT INTO online_rows (key, event_ms, created_us, value) VALUES (?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE
SET event_ms = excluded.event_ms, created_us = excluded.created_us, value = excluded.value
WHERE (excluded.event_ms, excluded.created_us) >= (event_ms, created_us)
   OR substr(excluded.value, 1, 8) <> substr(value, 1, 8);

-- name: overwrite
INSERT OR REPLACE INTO online_rows (key, event_ms, created_us, value) VALUES (?, ?, ?, ?);

-- name: read
SELECT key, value FROM online_rows WHERE key IN ({keys});

-- name: mark
INSERT INTO pending_marks (key, token) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET token = excluded.token;

-- name: pending
SELECT key, token FROM pending_marks WHERE key IN ({keys});

-- name: all_pending
SELECT key, token FROM pending_marks WHERE key >= ? AND key < ?;

-- name: clear
DELETE FROM pending_marks WHERE key = ? AND token = ?;

-- name: delete_row
DELETE FROM online_rows WHERE key = ?;

-- name: delete_rows
DELETE FROM online_rows WHERE key >= ? AND key < ?;

-- name: delete_marks
DELETE FROM pending_marks WHERE key >= ? AND key < ?;
