-- Every statement on the PostgreSQL system of record. Times leave as epoch milliseconds.
--
-- A row's place in the ingest sequence is its primary key. Writers hold the advisory lock from `take_numbers` to the
-- commit, so numbers appear in commit order. There are no foreign keys: they would cost more than the insert itself,
-- and the writer has just looked the transactions up under the same lock.

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS ringfence;

CREATE TABLE IF NOT EXISTS ringfence.ingest_sequence (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    last_seq bigint NOT NULL CHECK (last_seq >= 0)
);
INSERT INTO ringfence.ingest_sequence (last_seq) VALUES (0) ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS ringfence.identity (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    store_id uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO ringfence.identity DEFAULT VALUES ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS ringfence.transactions (
    seq bigint PRIMARY KEY,
    transaction_id text COLLATE "C" NOT NULL UNIQUE CHECK (transaction_id <> ''),
    event_timestamp timestamptz(3) NOT NULL,
    sender_id text COLLATE "C" NOT NULL CHECK (sender_id <> ''),
    receiver_id text COLLATE "C" NOT NULL CHECK (receiver_id <> ''),
    amount bigint NOT NULL CHECK (amount >= 0),
    currency text NOT NULL,
    amount_base bigint NOT NULL CHECK (amount_base >= 0),
    channel text,
    device_id text,
    card_id text,
    ip text,
    sender_country text,
    receiver_country text,
    sender_lat double precision,
    sender_lon double precision,
    receiver_lat double precision,
    receiver_lon double precision
);
CREATE INDEX IF NOT EXISTS transactions_by_sender ON ringfence.transactions (sender_id, event_timestamp);
CREATE INDEX IF NOT EXISTS transactions_by_receiver ON ringfence.transactions (receiver_id, event_timestamp);
CREATE INDEX IF NOT EXISTS transactions_by_time ON ringfence.transactions (event_timestamp);

CREATE TABLE IF NOT EXISTS ringfence.statuses (
    seq bigint PRIMARY KEY,
    transaction_id text COLLATE "C" NOT NULL,
    status text NOT NULL CHECK (status IN ('completed', 'failed', 'reversed')),
    status_timestamp timestamptz(3) NOT NULL,
    UNIQUE (transaction_id, status, status_timestamp)
);

CREATE TABLE IF NOT EXISTS ringfence.labels (
    seq bigint PRIMARY KEY,
    transaction_id text COLLATE "C" NOT NULL,
    is_fraud boolean NOT NULL,
    label_timestamp timestamptz(3) NOT NULL,
    fraud_party text NOT NULL CHECK (fraud_party IN ('sender', 'receiver', 'both')),
    UNIQUE (transaction_id, label_timestamp)
)

-- name: isolate_writer
-- Read committed, so that the comparison with what is stored sees what the last holder of the lock has committed.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED

-- name: lock_writers
SELECT pg_advisory_xact_lock(%(key)s)

-- name: wait_for_writers
SELECT pg_advisory_xact_lock_shared(%(key)s)

-- name: limit_lock_wait
SELECT set_config('lock_timeout', %(wait_ms)s, true)

-- name: try_named_lock
SELECT pg_try_advisory_lock(%(key)s)

-- name: limit_named_lock_wait
SELECT set_config('lock_timeout', %(wait_ms)s, false)

-- name: wait_for_named_lock
SELECT pg_advisory_lock(%(key)s)

-- name: take_numbers
UPDATE ringfence.ingest_sequence SET last_seq = last_seq + %(count)s RETURNING last_seq

-- name: max_seq
SELECT last_seq FROM ringfence.ingest_sequence

-- name: identity
SELECT store_id::text FROM ringfence.identity

-- name: state
SELECT last_seq, store_id::text FROM ringfence.ingest_sequence, ringfence.identity

-- name: transactions_of
SELECT
    seq, transaction_id, (date_part('epoch', event_timestamp) * 1000)::bigint, sender_id, receiver_id,
    amount, currency, amount_base, channel, device_id, card_id, ip, sender_country, receiver_country,
    sender_lat, sender_lon, receiver_lat, receiver_lon
FROM ringfence.transactions
WHERE transaction_id = ANY(%(ids)s::text[])

-- name: parties_of
SELECT transaction_id, sender_id, receiver_id
FROM ringfence.transactions
WHERE transaction_id = ANY(%(ids)s::text[])

-- name: statuses_of
SELECT seq, transaction_id, status, (date_part('epoch', status_timestamp) * 1000)::bigint
FROM ringfence.statuses
WHERE transaction_id = ANY(%(ids)s::text[])

-- name: labels_of
SELECT seq, transaction_id, is_fraud, (date_part('epoch', label_timestamp) * 1000)::bigint, fraud_party
FROM ringfence.labels
WHERE transaction_id = ANY(%(ids)s::text[])

-- name: copy_in_transactions
COPY ringfence.transactions (
    seq, transaction_id, event_timestamp, sender_id, receiver_id, amount, currency, amount_base, channel, device_id,
    card_id, ip, sender_country, receiver_country, sender_lat, sender_lon, receiver_lat, receiver_lon
) FROM STDIN (FORMAT csv)

-- name: copy_in_statuses
COPY ringfence.statuses (seq, transaction_id, status, status_timestamp) FROM STDIN (FORMAT csv)

-- name: copy_in_labels
COPY ringfence.labels (seq, transaction_id, is_fraud, label_timestamp, fraud_party) FROM STDIN (FORMAT csv)

-- name: event_range
SELECT
    (date_part('epoch', min(event_timestamp)) * 1000)::bigint,
    (date_part('epoch', max(event_timestamp)) * 1000)::bigint
FROM ringfence.transactions

-- name: copy_out_transactions
COPY (
    SELECT
        seq, transaction_id, (date_part('epoch', event_timestamp) * 1000)::bigint, sender_id, receiver_id,
        amount, currency, amount_base, channel, device_id, card_id, ip, sender_country, receiver_country,
        sender_lat, sender_lon, receiver_lat, receiver_lon
    FROM ringfence.transactions
    WHERE seq > %(after_seq)s AND seq <= %(up_to_seq)s AND event_timestamp < %(before)s
    ORDER BY seq
    LIMIT %(limit)s
) TO STDOUT (FORMAT csv)

-- name: copy_out_statuses
COPY (
    SELECT seq, transaction_id, status, (date_part('epoch', status_timestamp) * 1000)::bigint
    FROM ringfence.statuses
    WHERE seq > %(after_seq)s AND seq <= %(up_to_seq)s AND status_timestamp < %(before)s
    ORDER BY seq
    LIMIT %(limit)s
) TO STDOUT (FORMAT csv)

-- name: copy_out_labels
COPY (
    SELECT seq, transaction_id, is_fraud, (date_part('epoch', label_timestamp) * 1000)::bigint, fraud_party
    FROM ringfence.labels
    WHERE seq > %(after_seq)s AND seq <= %(up_to_seq)s AND label_timestamp < %(before)s
    ORDER BY seq
    LIMIT %(limit)s
) TO STDOUT (FORMAT csv)

-- name: copy_out_statuses_with_payments
COPY (
    SELECT
        s.seq, s.transaction_id, s.status, (date_part('epoch', s.status_timestamp) * 1000)::bigint,
        t.seq, (date_part('epoch', t.event_timestamp) * 1000)::bigint, t.sender_id, t.receiver_id, t.amount_base
    FROM ringfence.statuses AS s
    JOIN ringfence.transactions AS t USING (transaction_id)
    WHERE s.seq > %(after_seq)s AND s.seq <= %(up_to_seq)s
    ORDER BY s.seq
) TO STDOUT (FORMAT csv)

-- name: copy_out_labels_with_payments
COPY (
    SELECT
        l.seq, l.transaction_id, l.is_fraud, (date_part('epoch', l.label_timestamp) * 1000)::bigint, l.fraud_party,
        t.seq, (date_part('epoch', t.event_timestamp) * 1000)::bigint, t.sender_id, t.receiver_id, t.amount_base
    FROM ringfence.labels AS l
    JOIN ringfence.transactions AS t USING (transaction_id)
    WHERE l.seq > %(after_seq)s AND l.seq <= %(up_to_seq)s
    ORDER BY l.seq
) TO STDOUT (FORMAT csv)

-- name: copy_out_checksum_columns
COPY (
    SELECT
        seq, transaction_id, (date_part('epoch', event_timestamp) * 1000)::bigint, sender_id, receiver_id, amount_base
    FROM ringfence.transactions
    WHERE seq > %(after_seq)s AND seq <= %(up_to_seq)s
) TO STDOUT (FORMAT csv)

-- name: changes
-- What a status or label says of its payment counts from the payment on.
SELECT seq, (date_part('epoch', known) * 1000)::bigint
FROM (
    SELECT seq, event_timestamp AS known
    FROM ringfence.transactions
    WHERE seq > %(after_seq)s AND seq <= %(up_to_seq)s AND event_timestamp < %(before)s
    UNION ALL
    SELECT statuses.seq, greatest(statuses.status_timestamp, transactions.event_timestamp)
    FROM ringfence.statuses JOIN ringfence.transactions USING (transaction_id)
    WHERE statuses.seq > %(after_seq)s AND statuses.seq <= %(up_to_seq)s AND status_timestamp < %(before)s
    UNION ALL
    SELECT labels.seq, greatest(labels.label_timestamp, transactions.event_timestamp)
    FROM ringfence.labels JOIN ringfence.transactions USING (transaction_id)
    WHERE %(labels)s AND labels.seq > %(after_seq)s AND labels.seq <= %(up_to_seq)s AND label_timestamp < %(before)s
) AS changes
WHERE known < %(before)s
ORDER BY seq

-- name: transactions_of_accounts
-- Both sides of the union walk an index from the account; one OR over both columns would read the whole table.
SELECT
    seq, transaction_id, (date_part('epoch', event_timestamp) * 1000)::bigint, sender_id, receiver_id,
    amount, currency, amount_base, channel, device_id, card_id, ip, sender_country, receiver_country,
    sender_lat, sender_lon, receiver_lat, receiver_lon
FROM ringfence.transactions
WHERE sender_id = ANY(%(ids)s::text[]) AND event_timestamp < %(before)s AND seq <= %(up_to_seq)s
UNION ALL
SELECT
    seq, transaction_id, (date_part('epoch', event_timestamp) * 1000)::bigint, sender_id, receiver_id,
    amount, currency, amount_base, channel, device_id, card_id, ip, sender_country, receiver_country,
    sender_lat, sender_lon, receiver_lat, receiver_lon
FROM ringfence.transactions
WHERE
    receiver_id = ANY(%(ids)s::text[]) AND sender_id <> ALL(%(ids)s::text[])
    AND event_timestamp < %(before)s AND seq <= %(up_to_seq)s

-- name: statuses_known_of
SELECT seq, transaction_id, status, (date_part('epoch', status_timestamp) * 1000)::bigint
FROM ringfence.statuses
WHERE transaction_id = ANY(%(ids)s::text[]) AND status_timestamp < %(before)s AND seq <= %(up_to_seq)s

-- name: labels_known_of
SELECT seq, transaction_id, is_fraud, (date_part('epoch', label_timestamp) * 1000)::bigint, fraud_party
FROM ringfence.labels
WHERE transaction_id = ANY(%(ids)s::text[]) AND label_timestamp < %(before)s AND seq <= %(up_to_seq)s

-- name: known_accounts
SELECT wanted.account_id
FROM unnest(%(ids)s::text[]) AS wanted (account_id)
WHERE
    EXISTS (
        SELECT FROM ringfence.transactions
        WHERE sender_id = wanted.account_id AND event_timestamp < %(before)s
    )
    OR EXISTS (
        SELECT FROM ringfence.transactions
        WHERE receiver_id = wanted.account_id AND event_timestamp < %(before)s
    )

-- name: traces
SELECT transaction_id, (date_part('epoch', event_timestamp) * 1000)::bigint, sender_id, receiver_id, device_id, card_id
FROM ringfence.transactions
WHERE sender_id = %(id)s::text OR receiver_id = %(id)s::text

-- name: count_traces
SELECT
    (SELECT count(*) FROM ringfence.transactions WHERE sender_id = %(id)s::text OR receiver_id = %(id)s::text),
    (SELECT count(*) FROM ringfence.statuses WHERE transaction_id = ANY(%(transactions)s::text[])),
    (SELECT count(*) FROM ringfence.labels WHERE transaction_id = ANY(%(transactions)s::text[])),
    (
        SELECT count(*) FROM ringfence.transactions
        WHERE
            sender_id <> %(id)s::text AND receiver_id <> %(id)s::text
            AND (device_id = ANY(%(devices)s::text[]) OR card_id = ANY(%(cards)s::text[]))
    )

-- name: erase_statuses
DELETE FROM ringfence.statuses WHERE transaction_id = ANY(%(transactions)s::text[])

-- name: erase_labels
DELETE FROM ringfence.labels WHERE transaction_id = ANY(%(transactions)s::text[])

-- name: erase_transactions
DELETE FROM ringfence.transactions WHERE sender_id = %(id)s::text OR receiver_id = %(id)s::text

-- name: erase_things
UPDATE ringfence.transactions
SET
    device_id = CASE WHEN device_id = ANY(%(devices)s::text[]) THEN NULL ELSE device_id END,
    card_id = CASE WHEN card_id = ANY(%(cards)s::text[]) THEN NULL ELSE card_id END
WHERE device_id = ANY(%(devices)s::text[]) OR card_id = ANY(%(cards)s::text[])

-- name: renew_identity
UPDATE ringfence.identity SET store_id = gen_random_uuid()

-- name: vacuum
VACUUM ringfence.transactions, ringfence.statuses, ringfence.labels
