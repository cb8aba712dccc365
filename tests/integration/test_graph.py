"""Both graph stores, one behaviour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from graph_features.clock import NEVER_MS
from graph_features.contracts import STORED_TRANSACTION_SCHEMA, TIMESTAMP
from graph_features.errors import StoreUnavailableError
from graph_features.settings import Neo4jSettings
from graph_features.sources.base import GraphStore
from graph_features.sources.checksum import BUCKET_ROWS, bucket_checksums
from graph_features.sources.duckdb import DuckdbGraph
from graph_features.sources.neo4j import Neo4jGraph
from graph_features.sources.payments import EDGE_SCHEMA, canonical, edges_of

START_MS = 1_700_000_000_000


@pytest.fixture(params=["duckdb", pytest.param("neo4j", marks=pytest.mark.services)])
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GraphStore]:
    """An empty graph of each kind, schema created."""
    store: GraphStore
    if request.param == "duckdb":
        store = DuckdbGraph(tmp_path / "graph")
    else:
        store = Neo4jGraph(request.getfixturevalue("neo4j_settings"))
    store.create_schema()
    yield store
    store.close()


def stored(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Stored transactions: seq, ts, sender and receiver as given, the rest filled in."""
    full = []
    for row in rows:
        seq = row["seq"]
        base = {"transaction_id": f"t{seq:06d}", "amount": 100 + seq, "currency": "EUR", "amount_base": 100 + seq}
        full.append({**dict.fromkeys(STORED_TRANSACTION_SCHEMA.names), **base, "event_timestamp": row["ts"], **row})
    columns = {
        field.name: pa.array([row[field.name] for row in full], pa.int64()).cast(TIMESTAMP)
        if field.type == TIMESTAMP
        else pa.array([row[field.name] for row in full], field.type)
        for field in STORED_TRANSACTION_SCHEMA
    }
    return pa.RecordBatch.from_pydict(columns, schema=STORED_TRANSACTION_SCHEMA)


def random_payments(n: int, *, seed: int, first_seq: int = 1, step: int = 1) -> pa.RecordBatch:
    """n payments between 30 accounts; times go back and forth and repeat."""
    rng = np.random.default_rng(seed)
    senders, receivers = rng.integers(0, 30, n), rng.integers(0, 30, n)
    times = START_MS + rng.integers(0, 5_000, n)
    return stored(
        [
            {
                "seq": first_seq + i * step,
                "ts": int(times[i]),
                "sender_id": f"a{senders[i]}",
                "receiver_id": f"a{receivers[i]}",
                "device_id": None if i % 3 == 0 else f"d{senders[i] % 7}",
                "card_id": None if i % 2 == 0 else f"k{senders[i]}",
                "ip": f"10.0.0.{i % 5}",
            }
            for i in range(n)
        ]
    )


def expected_edges(*batches: pa.RecordBatch) -> pa.Table:
    return canonical([edges_of(pa.Table.from_batches(batches))])


def expected_neighbours(edges: pa.Table, account: str, before_ms: int, limit: int) -> list[str]:
    """The definition in plain Python."""
    found: list[str] = []
    for row in reversed(edges.to_pylist()):
        if row["event_timestamp"].timestamp() * 1000 >= before_ms:
            continue
        ends = [row["sender_id"], row["receiver_id"]]
        if account in ends and ends[0] != ends[1]:
            other = ends[1] if ends[0] == account else ends[0]
            if other not in found:
                found.append(other)
    return found[:limit]


def test_an_empty_graph_answers(graph: GraphStore) -> None:
    """Before the first write there is nothing, and no call fails."""
    graph.ping()
    assert graph.watermark() == 0
    assert graph.read_edges(before_ms=NEVER_MS) == EDGE_SCHEMA.empty_table()
    assert graph.neighbours(["a"], before_ms=NEVER_MS, limit=5) == {"a": []}
    assert graph.checksum() == {}
    assert graph.checksum(bucket=0) == {}


def test_schema_twice_is_fine(graph: GraphStore) -> None:
    """Creating what is there already changes nothing."""
    graph.create_schema()
    graph.ping()


def test_what_was_written_is_read_in_canonical_order(graph: GraphStore) -> None:
    """Columns, types and values come back exactly, ordered by time, then transaction id."""
    first, second = random_payments(300, seed=1), random_payments(200, seed=2, first_seq=301, step=3)
    graph.write_edges(first, watermark=300)
    graph.write_edges(second, watermark=1_000)
    assert graph.watermark() == 1_000
    read = graph.read_edges(before_ms=NEVER_MS)
    assert read.schema == EDGE_SCHEMA
    assert read.equals(expected_edges(first, second))


def test_reads_are_limited_by_time_and_sequence(graph: GraphStore) -> None:
    """before_ms is exclusive, after_seq exclusive, up_to_seq inclusive."""
    batch = random_payments(400, seed=3)
    graph.write_edges(batch, watermark=400)
    whole = expected_edges(batch)
    middle_ms = START_MS + 2_500
    times = whole["event_timestamp"].cast(pa.int64()).to_numpy()
    seqs = whole["seq"].to_numpy()
    assert graph.read_edges(before_ms=middle_ms).equals(whole.filter(times < middle_ms))
    assert graph.read_edges(before_ms=NEVER_MS, after_seq=390).equals(whole.filter(seqs > 390))
    some = graph.read_edges(before_ms=NEVER_MS, after_seq=100, up_to_seq=150)
    assert some.equals(whole.filter((seqs > 100) & (seqs <= 150)))


def test_a_batch_written_again_changes_nothing(graph: GraphStore) -> None:
    """A resumed write may repeat a batch, alone or mixed with new payments; the watermark never goes back."""
    first, both = random_payments(200, seed=4), random_payments(260, seed=4)
    graph.write_edges(first, watermark=200)
    before = graph.checksum()
    graph.write_edges(first, watermark=150)
    assert graph.checksum() == before
    assert graph.watermark() == 200
    mixed = pa.concat_batches([first, both.slice(200)])
    graph.write_edges(mixed, watermark=260)
    assert graph.read_edges(before_ms=NEVER_MS).equals(expected_edges(mixed))


def test_a_batch_without_payments_moves_the_watermark(graph: GraphStore) -> None:
    """The sequence numbers of statuses and labels are passed by as well."""
    graph.write_edges(random_payments(10, seed=5), watermark=10)
    graph.write_edges(random_payments(0, seed=5), watermark=25)
    assert graph.watermark() == 25
    assert graph.read_edges(before_ms=NEVER_MS).num_rows == 10


def test_a_hole_below_the_watermark_can_be_filled(graph: GraphStore) -> None:
    """Payments that were left out are added even where the watermark has passed them."""
    batch = random_payments(100, seed=6)
    graph.write_edges(pa.concat_batches([batch.slice(0, 40), batch.slice(60)]), watermark=100)
    graph.write_edges(batch, watermark=100)
    assert graph.read_edges(before_ms=NEVER_MS).equals(expected_edges(batch))


@pytest.mark.parametrize("limit", [1, 4, 100])
def test_neighbours_are_the_newest_distinct_counterparties(graph: GraphStore, limit: int) -> None:
    """Newest first, ties by transaction id, strictly before the instant, never oneself, at most `limit`."""
    first, second = random_payments(300, seed=7), random_payments(300, seed=8, first_seq=301)
    graph.write_edges(first, watermark=300)
    graph.write_edges(second, watermark=600)
    edges = expected_edges(first, second)
    accounts = [f"a{i}" for i in range(30)] + ["nobody"]
    for before_ms in (START_MS, START_MS + 1_234, NEVER_MS):
        found = graph.neighbours(accounts, before_ms=before_ms, limit=limit)
        assert found == {account: expected_neighbours(edges, account, before_ms, limit) for account in accounts}


def test_many_accounts_may_be_asked_at_once(graph: GraphStore) -> None:
    """A list longer than one query takes is answered in full."""
    graph.write_edges(random_payments(50, seed=9), watermark=50)
    accounts = [f"a{i}" for i in range(2_500)]
    found = graph.neighbours(accounts, before_ms=NEVER_MS, limit=3)
    assert list(found) == accounts
    assert sum(map(bool, found.values())) >= 20


def test_checksums_are_those_of_the_rows(graph: GraphStore) -> None:
    """Per bucket and per sequence number, over more than one bucket."""
    near, far = random_payments(150, seed=10), random_payments(150, seed=11, first_seq=BUCKET_ROWS - 60)
    graph.write_edges(near, watermark=150)
    graph.write_edges(far, watermark=BUCKET_ROWS + 100)
    table = pa.Table.from_batches([near, far])
    assert graph.checksum() == bucket_checksums(table)
    for bucket in (0, 1, 2):
        assert graph.checksum(bucket=bucket) == bucket_checksums(table, bucket)


def test_ids_may_hold_any_character(graph: GraphStore) -> None:
    """Quotes, separators, line ends, other scripts and emoji come back as they were written."""
    odd = ["a'b\"c", "x\x1fy", "line\nend", "счёт", "口座😀", "  spaces  ", "{curly} $dollar %s", "\\back"]
    rows = [
        {"seq": i + 1, "ts": START_MS + i, "transaction_id": f"t-{name}", "sender_id": name, "receiver_id": odd[i - 1]}
        for i, name in enumerate(odd)
    ]
    batch = stored(rows)
    graph.write_edges(batch, watermark=len(odd))
    assert graph.read_edges(before_ms=NEVER_MS).equals(expected_edges(batch))
    edges = expected_edges(batch)
    found = graph.neighbours(odd, before_ms=NEVER_MS, limit=9)
    assert found == {name: expected_neighbours(edges, name, NEVER_MS, 9) for name in odd}


def test_extreme_values_survive(graph: GraphStore) -> None:
    """The largest amount, the first and the last instant, and a payment to oneself."""
    rows = [
        {"seq": 1, "ts": 0, "sender_id": "a", "receiver_id": "a", "amount_base": 0},
        {"seq": 2, "ts": 4_102_444_799_999, "sender_id": "a", "receiver_id": "b", "amount_base": 10**15},
    ]
    batch = stored(rows)
    graph.write_edges(batch, watermark=2)
    assert graph.read_edges(before_ms=NEVER_MS).equals(expected_edges(batch))


@pytest.mark.services
def test_neo4j_keeps_the_graph_model(neo4j_settings: Neo4jSettings, neo4j_driver: Any) -> None:
    """Accounts, devices, cards and ips are unique nodes; USED spans the sender's first and last use."""
    batch = random_payments(400, seed=12)
    graph = Neo4jGraph(neo4j_settings)
    graph.create_schema()
    graph.write_edges(batch.slice(200), watermark=400)
    graph.write_edges(batch.slice(0, 200), watermark=400)
    graph.close()
    expected: dict[tuple[str, str], list[int]] = {}
    for row in batch.to_pylist():
        ts = int(row["event_timestamp"].timestamp() * 1000 + 0.5)
        for kind in ("device_id", "card_id", "ip"):
            if row[kind] is not None:
                expected.setdefault((row["sender_id"], row[kind]), []).append(ts)
    with neo4j_driver.session(database=neo4j_settings.database) as session:
        rows = session.run("MATCH (a:Account)-[u:USED]->(t) RETURN a.id, t.id, u.first_ts, u.last_ts").values()
        kinds = session.run("MATCH (:Account)-[:USED]->(t) RETURN DISTINCT labels(t)[0]").value()
        accounts = session.run("MATCH (a:Account) RETURN count(a)").value()[0]
        constraints = session.run("SHOW CONSTRAINTS YIELD name").value()
        indexes = session.run("SHOW INDEXES YIELD name").value()
    assert {(a, t): (first, last) for a, t, first, last in rows} == {k: (min(v), max(v)) for k, v in expected.items()}
    assert len(rows) == len(expected)
    assert sorted(kinds) == ["Card", "Device", "Ip"]
    assert accounts == 30
    assert {"account_id", "device_id", "card_id", "ip_id", "sync_name", "sent_transaction_id"} <= set(constraints)
    assert {"sent_ts", "sent_seq"} <= set(indexes)


@pytest.mark.services
def test_neo4j_with_a_wrong_password_says_so_without_it(neo4j_settings: Neo4jSettings) -> None:
    """A refused password is StoreUnavailableError; neither password stands in the message."""
    wrong = neo4j_settings.model_copy(update={"password": type(neo4j_settings.password)("wrong-secret")})
    graph = Neo4jGraph(wrong)
    with pytest.raises(StoreUnavailableError, match="Unauthorized") as caught:
        graph.ping()
    graph.close()
    assert "wrong-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_neo4j_that_is_not_there_is_unavailable(unused_port: Callable[[], int]) -> None:
    """Nobody at the address, or an address that makes no sense: StoreUnavailableError, soon."""
    graph = Neo4jGraph(Neo4jSettings(uri=f"bolt://127.0.0.1:{unused_port()}", timeout_s=1))
    for call in (graph.ping, graph.watermark, graph.create_schema):
        with pytest.raises(StoreUnavailableError, match="ServiceUnavailable"):
            call()
    graph.close()
    with pytest.raises(StoreUnavailableError):
        Neo4jGraph(Neo4jSettings(uri="ftp://somewhere"))


@pytest.fixture
def unused_port() -> Callable[[], int]:
    """A port of this machine on which nobody listens."""
    import socket

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find
