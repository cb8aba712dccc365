-- Every statement on the embedded graph: Parquet segments, each in two orders (payments by sequence, both ends by account).

-- name: write_payments
COPY (
    SELECT
        transaction_id, seq, epoch_ms(event_timestamp) AS ts, sender_id, receiver_id, amount_base, device_id, card_id, ip
    FROM batch
    ORDER BY seq
) TO '{path}' (FORMAT parquet, COMPRESSION zstd)

-- name: merge_payments
COPY (
    SELECT * FROM read_parquet($files) ORDER BY seq
) TO '{path}' (FORMAT parquet, COMPRESSION zstd)

-- Small row groups: a query for one account reads the groups whose account range holds it, and nothing else.
-- name: write_accounts
COPY (
    SELECT * FROM (
        SELECT sender_id AS account_id, ts, transaction_id, receiver_id AS other_id
        FROM read_parquet($files) WHERE sender_id <> receiver_id
        UNION ALL
        SELECT receiver_id, ts, transaction_id, sender_id
        FROM read_parquet($files) WHERE sender_id <> receiver_id
    )
    ORDER BY account_id, ts, transaction_id
) TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 8192)

-- name: extent
SELECT count(*), coalesce(min(seq), 0), coalesce(max(seq), 0) FROM read_parquet($files)

-- name: read_seqs
SELECT seq FROM read_parquet($files) WHERE seq BETWEEN $first_seq AND $last_seq

-- name: read_payments
SELECT transaction_id, seq, ts AS event_timestamp, sender_id, receiver_id, amount_base
FROM read_parquet($files)
WHERE seq > $after_seq AND seq <= $up_to_seq AND ts < $before_ms
ORDER BY ts, transaction_id

-- Newest first means the reverse of the canonical order of payments: time, then transaction id.
-- name: neighbours
SELECT account_id, (list(other_id ORDER BY newest DESC))[1:$limit]
FROM (
    SELECT account_id, other_id, max({{'ts': ts, 'transaction_id': transaction_id}}) AS newest
    FROM read_parquet($files)
    WHERE account_id IN ({account_ids}) AND ts < $before_ms
    GROUP BY account_id, other_id
)
GROUP BY account_id

-- name: count_account
SELECT count(*) FROM read_parquet($files)
WHERE
    sender_id = $account_id OR receiver_id = $account_id
    OR list_contains($devices::VARCHAR[], device_id) OR list_contains($cards::VARCHAR[], card_id)

-- name: erase_payments
COPY (
    SELECT * REPLACE (
        CASE WHEN list_contains($devices::VARCHAR[], device_id) THEN NULL ELSE device_id END AS device_id,
        CASE WHEN list_contains($cards::VARCHAR[], card_id) THEN NULL ELSE card_id END AS card_id
    )
    FROM read_parquet($files)
    WHERE sender_id <> $account_id AND receiver_id <> $account_id
    ORDER BY seq
) TO '{path}' (FORMAT parquet, COMPRESSION zstd)
