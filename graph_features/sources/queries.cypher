// Every statement on Neo4j. Parameters are parallel lists (columns), not lists of maps: half the time on the wire.
//
// (:Account {id})-[:SENT {transaction_id, ts, amount, seq}]->(:Account)
// (:Account)-[:USED {first_ts, last_ts}]->(:Device | :Card | :Ip), from the sender of a payment
// (:Sync {name, seq}): how far the graph is complete
//
// ts in epoch milliseconds UTC, amount in minor units of the base currency, seq the ingest sequence.

// name: schema_account
CREATE CONSTRAINT account_id IF NOT EXISTS FOR (account:Account) REQUIRE account.id IS UNIQUE

// name: schema_device
CREATE CONSTRAINT device_id IF NOT EXISTS FOR (device:Device) REQUIRE device.id IS UNIQUE

// name: schema_card
CREATE CONSTRAINT card_id IF NOT EXISTS FOR (card:Card) REQUIRE card.id IS UNIQUE

// name: schema_ip
CREATE CONSTRAINT ip_id IF NOT EXISTS FOR (ip:Ip) REQUIRE ip.id IS UNIQUE

// name: schema_sync
CREATE CONSTRAINT sync_name IF NOT EXISTS FOR (sync:Sync) REQUIRE sync.name IS UNIQUE

// name: schema_transaction
CREATE CONSTRAINT sent_transaction_id IF NOT EXISTS FOR ()-[sent:SENT]-() REQUIRE sent.transaction_id IS UNIQUE

// name: schema_ts
CREATE INDEX sent_ts IF NOT EXISTS FOR ()-[sent:SENT]-() ON (sent.ts)

// name: schema_seq
CREATE INDEX sent_seq IF NOT EXISTS FOR ()-[sent:SENT]-() ON (sent.seq)

// name: await_indexes
CALL db.awaitIndexes(600)

// name: ping
RETURN 1

// name: watermark
OPTIONAL MATCH (sync:Sync {name: 'transactions'})
RETURN coalesce(sync.seq, 0) AS seq

// The first statement of a write: it locks the node, so that a second writer waits here and not amid the accounts.
// name: move_watermark
MERGE (sync:Sync {name: 'transactions'})
  ON CREATE SET sync.seq = $watermark
  ON MATCH SET sync.seq = CASE WHEN sync.seq < $watermark THEN $watermark ELSE sync.seq END

// Without the hint a graph that was empty a moment ago, whose statistics lag, gets a scan of the index for every id.
// name: known_transactions
UNWIND $transaction_ids AS transaction_id
MATCH ()-[sent:SENT {transaction_id: transaction_id}]->()
USING INDEX SEEK sent:SENT(transaction_id)
RETURN collect(transaction_id) AS transaction_ids

// name: write_accounts
UNWIND $account_ids AS account_id
MERGE (:Account {id: account_id})

// name: write_payments
UNWIND range(0, size($seq) - 1) AS i
MATCH (sender:Account {id: $sender_id[i]})
USING INDEX SEEK sender:Account(id)
MATCH (receiver:Account {id: $receiver_id[i]})
USING INDEX SEEK receiver:Account(id)
CREATE (sender)-[:SENT {transaction_id: $transaction_id[i], ts: $ts[i], amount: $amount[i], seq: $seq[i]}]->(receiver)

// name: write_devices
UNWIND range(0, size($account_id) - 1) AS i
MATCH (account:Account {id: $account_id[i]})
USING INDEX SEEK account:Account(id)
MERGE (thing:Device {id: $thing_id[i]})
MERGE (account)-[used:USED]->(thing)
  ON CREATE SET used.first_ts = $first_ts[i], used.last_ts = $last_ts[i]
  ON MATCH SET
    used.first_ts = CASE WHEN $first_ts[i] < used.first_ts THEN $first_ts[i] ELSE used.first_ts END,
    used.last_ts = CASE WHEN $last_ts[i] > used.last_ts THEN $last_ts[i] ELSE used.last_ts END

// name: write_cards
UNWIND range(0, size($account_id) - 1) AS i
MATCH (account:Account {id: $account_id[i]})
USING INDEX SEEK account:Account(id)
MERGE (thing:Card {id: $thing_id[i]})
MERGE (account)-[used:USED]->(thing)
  ON CREATE SET used.first_ts = $first_ts[i], used.last_ts = $last_ts[i]
  ON MATCH SET
    used.first_ts = CASE WHEN $first_ts[i] < used.first_ts THEN $first_ts[i] ELSE used.first_ts END,
    used.last_ts = CASE WHEN $last_ts[i] > used.last_ts THEN $last_ts[i] ELSE used.last_ts END

// name: write_ips
UNWIND range(0, size($account_id) - 1) AS i
MATCH (account:Account {id: $account_id[i]})
USING INDEX SEEK account:Account(id)
MERGE (thing:Ip {id: $thing_id[i]})
MERGE (account)-[used:USED]->(thing)
  ON CREATE SET used.first_ts = $first_ts[i], used.last_ts = $last_ts[i]
  ON MATCH SET
    used.first_ts = CASE WHEN $first_ts[i] < used.first_ts THEN $first_ts[i] ELSE used.first_ts END,
    used.last_ts = CASE WHEN $last_ts[i] > used.last_ts THEN $last_ts[i] ELSE used.last_ts END

// Strings of several payments each: the driver spends about 1 µs on every value that it receives, however short, and
// the server little on adding a few strings up (more than some 16, and it copies what it has added up too often).
// name: read_blocks
MATCH (sender)-[sent:SENT]->(receiver)
USING INDEX SEEK sent:SENT(seq)
WHERE sent.seq > $after_seq AND sent.seq <= $up_to_seq AND sent.ts < $before_ms
WITH collect(
  $row + sent.transaction_id + $field + sent.seq + $field + sent.ts + $field
  + sender.id + $field + receiver.id + $field + sent.amount
) AS rows
RETURN
  size(rows),
  [start IN range(0, size(rows) - 1, 16) | reduce(block = '', text IN rows[start .. start + 16] | block + text)]

// The same in columns, for the slice in which an id holds a separator.
// name: read_columns
MATCH (sender)-[sent:SENT]->(receiver)
USING INDEX SEEK sent:SENT(seq)
WHERE sent.seq > $after_seq AND sent.seq <= $up_to_seq AND sent.ts < $before_ms
RETURN
  collect(sent.transaction_id), collect(sent.seq), collect(sent.ts),
  collect(sender.id), collect(receiver.id), collect(sent.amount)

// name: last_seq
MATCH ()-[sent:SENT]->()
USING INDEX sent:SENT(seq)
WHERE sent.seq > 0
RETURN sent.seq AS seq ORDER BY seq DESC LIMIT 1

// Newest first means the reverse of the canonical order of payments: time, then transaction id.
// name: neighbours
UNWIND $account_ids AS account_id
MATCH (account:Account {id: account_id})
CALL (account) {
  MATCH (account)-[sent:SENT]-(other:Account)
  WHERE sent.ts < $before_ms AND other <> account
  WITH other, max([sent.ts, sent.transaction_id]) AS newest
  ORDER BY newest DESC LIMIT $limit
  RETURN collect(other.id) AS neighbours
}
RETURN account_id, neighbours

// name: count_account
OPTIONAL MATCH (account:Account {id: $account_id})
WITH count(account) AS accounts
OPTIONAL MATCH (:Account {id: $account_id})-[sent:SENT]-()
WITH accounts, count(DISTINCT sent) AS payments
OPTIONAL MATCH (device:Device) WHERE device.id IN $devices
WITH accounts, payments, count(device) AS devices
OPTIONAL MATCH (card:Card) WHERE card.id IN $cards
WITH accounts, payments, devices, count(card) AS cards
RETURN accounts + payments + devices + cards

// Many payments do not fit into one transaction's memory; the nodes go last, so that a second try finds the rest.
// name: erase_payments
MATCH (:Account {id: $account_id})-[sent:SENT]-()
CALL (sent) { DELETE sent } IN TRANSACTIONS OF 10000 ROWS

// An address that nobody else used speaks of this account alone.
// name: erase_addresses
MATCH (:Account {id: $account_id})-[:USED]->(ip:Ip)
WHERE NOT EXISTS { MATCH (ip)<-[:USED]-(other:Account) WHERE other.id <> $account_id }
DETACH DELETE ip

// name: erase_devices
MATCH (device:Device) WHERE device.id IN $devices
DETACH DELETE device

// name: erase_cards
MATCH (card:Card) WHERE card.id IN $cards
DETACH DELETE card

// name: erase_account
MATCH (account:Account {id: $account_id})
DETACH DELETE account
