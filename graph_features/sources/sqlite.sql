-- Every statement on the embedded system of record. Times are integers: epoch milliseconds.

-- name: create_schema
CREATE TABLE IF NOT EXISTS ingest_sequence (
    only_row INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),
    last_seq INTEGER NOT NULL CHECK (last_seq >= 0)
);
INSERT OR IGNORE INTO ingest_sequence (only_row, last_seq) VALUES (1, 0);

CREATE TABLE IF NOT EXISTS identity (
    only_row INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),
    store_id TEXT NOT NULL DEFAULT (hex(randomblob(16)))
);
INSERT OR IGNORE INTO identity (only_row) VALUES (1);

CREATE TABLE IF NOT EXISTS transactions (
    seq INTEGER PRIMARY KEY,
    transaction_id TEXT NOT NULL UNIQUE CHECK (transaction_id <> ''),
    event_timestamp INTEGER NOT NULL,
    sender_id TEXT NOT NULL CHECK (sender_id <> ''),
    receiver_id TEXT NOT NULL CHECK (receiver_id <> ''),
    amount INTEGER NOT NULL CHECK (amount >= 0),
    currency TEXT NOT NULL,
    amount_base INTEGER NOT NULL CHECK (amount_base >= 0),
    channel TEXT,
    device_id TEXT,
    card_id TEXT,
    ip TEXT,
    sender_country TEXT,
    receiver_country TEXT,
    sender_lat REAL,
    sender_lon REAL,
    receiver_lat REAL,
    receiver_lon REAL
);
CREATE INDEX IF NOT EXISTS transactions_by_sender ON transactions (sender_id, event_timestamp);
CREATE INDEX IF NOT EXISTS transactions_by_receiver ON transactions (receiver_id, event_timestamp);
CREATE INDEX IF NOT EXISTS transactions_by_time ON transactions (event_timestamp);

CREATE TABLE IF NOT EXISTS statuses (
    seq INTEGER PRIMARY KEY,
    transaction_id TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('completed', 'failed', 'reversed')),
    status_timestamp INTEGER NOT NULL,
    UNIQUE (transaction_id, status, status_timestamp)
);

CREATE TABLE IF NOT EXISTS labels (
    seq INTEGER PRIMARY KEY,
    transaction_id TEXT NOT NULL,
    is_fraud INTEGER NOT NULL CHECK (is_fraud IN (0, 1)),
    label_timestamp INTEGER NOT NULL,
    fraud_party TEXT NOT NULL CHECK (fraud_party IN ('sender', 'receiver', 'both')),
    UNIQUE (transaction_id, label_timestamp)
);

-- name: take_numbers
UPDATE ingest_sequence SET last_seq = last_seq + :count

-- name: max_seq
SELECT last_seq FROM ingest_sequence

-- name: identity
SELECT store_id FROM identity

-- name: state
SELECT last_seq, store_id FROM ingest_sequence, identity

-- name: insert_transactions
INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: insert_statuses
INSERT INTO statuses VALUES (?, ?, ?, ?)

-- name: insert_labels
INSERT INTO labels VALUES (?, ?, ?, ?, ?)

-- name: transactions_of
SELECT * FROM transactions WHERE transaction_id IN (SELECT value FROM json_each(:ids))

-- name: parties_of
SELECT transaction_id, sender_id, receiver_id
FROM transactions
WHERE transaction_id IN (SELECT value FROM json_each(:ids))

-- name: statuses_of
SELECT * FROM statuses WHERE transaction_id IN (SELECT value FROM json_each(:ids))

-- name: labels_of
SELECT * FROM labels WHERE transaction_id IN (SELECT value FROM json_each(:ids))

-- name: event_range
SELECT (SELECT min(event_timestamp) FROM transactions), (SELECT max(event_timestamp) FROM transactions)

-- name: read_transactions
SELECT * FROM transactions
WHERE seq > :after_seq AND seq <= :up_to_seq AND +event_timestamp < :before
ORDER BY seq
LIMIT :limit

-- name: read_statuses
SELECT * FROM statuses
WHERE seq > :after_seq AND seq <= :up_to_seq AND status_timestamp < :before
ORDER BY seq
LIMIT :limit

-- name: read_labels
SELECT * FROM labels
WHERE seq > :after_seq AND seq <= :up_to_seq AND label_timestamp < :before
ORDER BY seq
LIMIT :limit

-- name: read_statuses_with_payments
SELECT
    statuses.*, transactions.seq, transactions.event_timestamp, transactions.sender_id, transactions.receiver_id,
    transactions.amount_base
FROM statuses CROSS JOIN transactions USING (transaction_id)
WHERE statuses.seq > :after_seq AND statuses.seq <= :up_to_seq
ORDER BY statuses.seq

-- name: read_labels_with_payments
SELECT
    labels.*, transactions.seq, transactions.event_timestamp, transactions.sender_id, transactions.receiver_id,
    transactions.amount_base
FROM labels CROSS JOIN transactions USING (transaction_id)
WHERE labels.seq > :after_seq AND labels.seq <= :up_to_seq
ORDER BY labels.seq

-- name: read_checksum_columns
SELECT seq, transaction_id, event_timestamp, sender_id, receiver_id, amount_base
FROM transactions
WHERE seq > :after_seq AND seq <= :up_to_seq

-- name: changes
-- What a status or label says of its payment counts from the payment on.
SELECT seq, known
FROM (
    SELECT seq, event_timestamp AS known
    FROM transactions
    WHERE seq > :after_seq AND seq <= :up_to_seq
    UNION ALL
    SELECT statuses.seq, max(statuses.status_timestamp, transactions.event_timestamp)
    FROM statuses JOIN transactions USING (transaction_id)
    WHERE statuses.seq > :after_seq AND statuses.seq <= :up_to_seq
    UNION ALL
    SELECT labels.seq, max(labels.label_timestamp, transactions.event_timestamp)
    FROM labels JOIN transactions USING (transaction_id)
    WHERE :labels AND labels.seq > :after_seq AND labels.seq <= :up_to_seq
)
WHERE known < :before
ORDER BY seq

-- name: transactions_of_accounts
SELECT * FROM transactions
WHERE sender_id IN (SELECT value FROM json_each(:ids)) AND event_timestamp < :before AND +seq <= :up_to_seq
UNION ALL
SELECT * FROM transactions
WHERE
    receiver_id IN (SELECT value FROM json_each(:ids))
    AND +sender_id NOT IN (SELECT value FROM json_each(:ids))
    AND event_timestamp < :before AND +seq <= :up_to_seq

-- name: statuses_known_of
SELECT * FROM statuses
WHERE
    transaction_id IN (SELECT value FROM json_each(:ids))
    AND status_timestamp < :before AND +seq <= :up_to_seq

-- name: labels_known_of
SELECT * FROM labels
WHERE
    transaction_id IN (SELECT value FROM json_each(:ids))
    AND label_timestamp < :before AND +seq <= :up_to_seq

-- name: known_accounts
SELECT wanted.value
FROM json_each(:ids) AS wanted
WHERE
    EXISTS (SELECT 1 FROM transactions WHERE sender_id = wanted.value AND event_timestamp < :before)
    OR EXISTS (SELECT 1 FROM transactions WHERE receiver_id = wanted.value AND event_timestamp < :before)

-- name: traces
SELECT transaction_id, event_timestamp, sender_id, receiver_id, device_id, card_id
FROM transactions
WHERE sender_id = :id OR receiver_id = :id

-- name: count_traces
SELECT
    (SELECT count(*) FROM transactions WHERE sender_id = :id OR receiver_id = :id),
    (SELECT count(*) FROM statuses WHERE transaction_id IN (SELECT value FROM json_each(:transactions))),
    (SELECT count(*) FROM labels WHERE transaction_id IN (SELECT value FROM json_each(:transactions))),
    (
        SELECT count(*) FROM transactions
        WHERE
            sender_id <> :id AND receiver_id <> :id
            AND (
                device_id IN (SELECT value FROM json_each(:devices))
                OR card_id IN (SELECT value FROM json_each(:cards))
            )
    )

-- name: erase_statuses
DELETE FROM statuses WHERE transaction_id IN (SELECT value FROM json_each(:transactions))

-- name: erase_labels
DELETE FROM labels WHERE transaction_id IN (SELECT value FROM json_each(:transactions))

-- name: erase_transactions
DELETE FROM transactions WHERE sender_id = :id OR receiver_id = :id

-- name: erase_things
UPDATE transactions
SET
    device_id = CASE WHEN device_id IN (SELECT value FROM json_each(:devices)) THEN NULL ELSE device_id END,
    card_id = CASE WHEN card_id IN (SELECT value FROM json_each(:cards)) THEN NULL ELSE card_id END
WHERE
    device_id IN (SELECT value FROM json_each(:devices)) OR card_id IN (SELECT value FROM json_each(:cards))

-- name: renew_identity
UPDATE identity SET store_id = hex(randomblob(16))

-- name: vacuum
VACUUM
