"""Erasure: nothing of the account is left anywhere, the proof says so, and others' features are as if it never was."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from graph_features import backends, erasure
from graph_features.catalog import catalog
from graph_features.clock import MAX_EVENT_MS, to_ms
from graph_features.contracts import LABEL_SCHEMA, STATUS_SCHEMA, TRANSACTION_SCHEMA
from graph_features.drivers.batch import event_rows
from graph_features.edges import EdgeTable
from graph_features.ingest.sync import sync_graph
from graph_features.ingest.verify import verify
from graph_features.jobs.engine import sqlite_engine
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.runner import JobRunner
from graph_features.settings import FeatureSettings, PlatformSettings
from infra.erasing import keep, places
from serving.decisions import DecisionLog
from tests.decisions import Decided, decided

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
ACCOUNTS = [f"a{number}" for number in range(12)]
GONE, NEAR = "a1", "a10"  # the one id begins like the other


class RealStores:
    """The stores of a profile, with a home of their own."""

    feature_settings = FeatureSettings()

    def __init__(self, request: pytest.FixtureRequest, home: Path) -> None:
        platform = PlatformSettings(home=home)
        if request.param == "embedded":
            self.records: Any = backends.open_records(platform)
            self.graph: Any = backends.open_graph(platform)
            self.offline: Any = backends.open_offline(platform)
            self.online: Any = backends.open_online(platform)
            return
        from graph_features.sources.neo4j import Neo4jGraph
        from graph_features.sources.postgres import PostgresRecords
        from graph_features.stores.postgres import PostgresOfflineStore
        from graph_features.stores.redis import RedisOnlineStore

        postgres = request.getfixturevalue("postgres_settings")
        self.records = PostgresRecords(postgres, cache=home / backends.RECORDS_CACHE)
        self.graph = Neo4jGraph(request.getfixturevalue("neo4j_settings"))
        self.offline = PostgresOfflineStore(postgres)
        self.online = RedisOnlineStore(request.getfixturevalue("redis_settings"), project="test")


def payments() -> pa.Table:
    """Two hundred payments between twelve accounts, each with a device and a card of its sender's."""
    rows = [
        {
            **dict.fromkeys(TRANSACTION_SCHEMA.names),
            "transaction_id": f"t{i:03d}",
            "event_timestamp": NOON - timedelta(minutes=31 * i),
            "sender_id": ACCOUNTS[i % 12],
            "receiver_id": ACCOUNTS[(i * 7 + 3) % 12],
            "amount": 100 + i,
            "amount_base": 100 + i,
            "currency": "EUR",
            # Others pay with the device of a1 now and then.
            "device_id": "d1" if i % 17 == 0 else f"d{i % 12}",
            "card_id": f"c{i % 12}",
            "ip": f"10.0.0.{i % 12}",
        }
        for i in range(200)
    ]
    return pa.Table.from_pylist(rows, TRANSACTION_SCHEMA)


@pytest.fixture(params=["embedded", pytest.param("services", marks=pytest.mark.services)])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealStores]:
    """Real stores with payments, a status, a label, a synchronous graph and every feature row."""
    made = RealStores(request, tmp_path)
    made.records.create_schema()
    made.graph.create_schema()
    made.records.write_transactions(payments(), made.online.mark_pending)
    known = {"transaction_id": "t001", "status": "reversed", "status_timestamp": NOON}
    made.records.write_statuses(pa.Table.from_pylist([known], STATUS_SCHEMA), made.online.mark_pending)
    label = {"transaction_id": "t013", "is_fraud": True, "label_timestamp": NOON, "fraud_party": "sender"}
    made.records.write_labels(pa.Table.from_pylist([label], LABEL_SCHEMA), made.online.mark_pending)
    sync_graph(made.records, made.graph)
    yield made
    for store in (made.records, made.graph, made.offline, made.online):
        store.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger whose jobs have filled the stores and said something of the account."""
    made = Ledger(sqlite_engine(tmp_path / "jobs" / "ledger.sqlite"))
    made.create_schema()
    yield made
    made.close()


@pytest.fixture
def decisions(tmp_path: Path) -> Iterator[DecisionLog]:
    """Decisions on a payment of the account's, one of another account's, and one with its device."""
    log = DecisionLog(sa.create_engine(f"sqlite:///{tmp_path / 'decisions.sqlite'}"))
    log.create()
    batch = decided(
        Decided(transaction_id="x0", sender=GONE, receiver="a2", device="d1"),
        Decided(transaction_id="x1", sender=NEAR, receiver="a2", device="d10"),
        Decided(transaction_id="x2", sender="a3", receiver="a4", device="d1"),
    )
    log.store_segment("one", [batch])
    yield log
    log.close()


def everything(stores: RealStores, ledger: Ledger) -> None:
    """Fill every view offline and online."""
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(stores))
    runner.run(runner.submit("backfill", {})).check()
    runner.run(runner.submit("materialize", {})).check()
    ledger.submit("backfill", {"views": [GONE, NEAR]}, requested_by="test")
    runner.close()


def test_nothing_is_left_and_others_are_as_if_it_never_was(
    stores: RealStores, ledger: Ledger, decisions: DecisionLog, tmp_path: Path
) -> None:
    """Every place must count zero afterwards; rows of the other side equal those of records without the account."""
    everything(stores, ledger)
    rejects = tmp_path / "file.rejects.csv"
    rejects.write_text(
        f"row,transaction_id,field,reason\n1,t999,sender_id,{GONE} is odd\n2,t998,sender_id,{NEAR} is odd\n"
    )
    where = places(PlatformSettings(home=tmp_path), decisions, [])
    proof = erasure.erase(GONE, stores=stores, ledger=ledger, places=where)
    found = {finding.place: finding for finding in proof.findings}
    assert proof.is_complete, [finding for finding in proof.findings if finding.after]
    for place in ("records: transactions", "records: statuses", "records: labels", "decision records",
                  "graph: payments, account, devices, cards", "offline rows: account_neighbours",
                  "offline rows: pair_history", "online rows: account_activity", "online rows: account_neighbours",
                  "job ledger: parameters and errors", "files: rejected rows", "files: cache of records",
                  "records: payments of others with its devices or cards"):  # fmt: skip
        assert found[place].before > 0, place
    assert proof.speaks_of(GONE)
    assert not proof.speaks_of(NEAR)
    assert GONE not in keep(proof, tmp_path).read_text().split('"')
    assert NEAR in rejects.read_text()
    assert len(decisions.find("x1")) == 1
    assert verify(stores.records, stores.graph).equal
    assert stores.online.all_pending() == {}
    left = payments().to_pylist()
    kept = [row for row in left if GONE not in (row["sender_id"], row["receiver_id"])]
    assert stores.records.read_all().transactions.num_rows == len(kept)
    _as_if_it_never_was(stores, [name for name in ACCOUNTS if name != GONE])


def _as_if_it_never_was(stores: RealStores, others: list[str]) -> None:
    records = stores.records.read_all()
    edges = EdgeTable.from_arrow(records.transactions, records.statuses, records.labels, max_seq=records.max_seq)
    for view in catalog().event_views():
        if view.entity != "account":
            continue
        tables = event_rows(view, edges, from_ms=0, to_ms=MAX_EVENT_MS, settings=FeatureSettings(), accounts=others)
        newest: dict[str, Any] = {}
        for table in tables:
            for row in table.to_pylist():
                newest[row["account_id"]] = row["event_timestamp"]
        (packed,) = stores.online.read([(view, [(name,) for name in others])])
        as_of = {
            name: int.from_bytes(value[8:16], "little") for name, value in zip(others, packed, strict=True) if value
        }
        assert as_of == {name: to_ms(moment) for name, moment in newest.items()}, view.name


def test_a_second_run_finds_nothing(stores: RealStores, ledger: Ledger, decisions: DecisionLog, tmp_path: Path) -> None:
    """Erasing again, or somebody unknown, must change nothing and say so."""
    where = places(PlatformSettings(home=tmp_path), decisions, [])
    erasure.erase(GONE, stores=stores, ledger=ledger, places=where)
    before = stores.records.max_seq()
    looked = erasure.look(GONE, stores=stores, ledger=ledger, places=where)
    assert set(looked.values()) == {0}
    assert stores.records.max_seq() == before


def test_an_interrupted_erasure_is_finished_by_the_next(
    stores: RealStores, ledger: Ledger, decisions: DecisionLog, tmp_path: Path
) -> None:
    """Whatever a first run had done when it died, the same again must remove the rest."""
    everything(stores, ledger)

    class Broken:
        name = "broken"
        calls = 0

        def count(self, traces: Any) -> int:
            return 0

        def erase(self, traces: Any) -> None:
            Broken.calls += 1
            if Broken.calls == 1:
                raise KeyboardInterrupt

    where = [*places(PlatformSettings(home=tmp_path), decisions, []), Broken()]
    with pytest.raises(KeyboardInterrupt):
        erasure.erase(GONE, stores=stores, ledger=ledger, places=where)
    assert erasure.erase(GONE, stores=stores, ledger=ledger, places=where).is_complete
