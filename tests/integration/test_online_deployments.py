"""The online store on a Redis Cluster, behind Sentinel, behind TLS, with expiry, and with many clients at once."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.errors import FeatureViewNotFoundException
from feast.types import Array, Int64, String
from feast.value_type import ValueType

from graph_features.errors import SettingsError, StoreUnavailableError
from graph_features.schema import Cadence, DType, FeatureSchema, ViewSchema
from graph_features.settings import RedisSettings
from graph_features.stores.blocks import RowBlock
from graph_features.stores.redis import RedisOnlineStore
from graph_features.stores.redis_link import RedisKind, RedisTarget
from graph_features.stores.storing import Storing

if TYPE_CHECKING:
    from tests.integration.conftest import RedisNodes, TlsFront

pytestmark = pytest.mark.services

HOST = "127.0.0.1"
NAMES = [f"row:{i}".encode() for i in range(6_000)]
VIEW = ViewSchema(
    name="one",
    entity="account",
    cadence=Cadence.EVENT,
    description="One number.",
    features=(FeatureSchema(name="n", dtype=DType.INT64, description="n", unit="u", range="any"),),
)
ACCOUNT = Entity(name="account", join_keys=["account_id"], value_type=ValueType.STRING)
NOW = datetime.now(UTC).replace(microsecond=0)


def value(version: int, *, schema: int = 1) -> bytes:
    """A packed value's header and one word, whose event time is `version` microseconds."""
    words = (schema, version, 0, 1, version)
    return b"".join(word.to_bytes(8, "little", signed=True) for word in words)


def version_of(data: bytes | None) -> int:
    assert data is not None
    assert data[8:16] == data[32:40]
    return int.from_bytes(data[8:16], "little", signed=True)


def rows(keys: Sequence[str], version: int) -> pa.Table:
    schema = VIEW.arrow_schema
    n = len(keys)
    arrays = [
        pa.array(keys),
        pa.array([version] * n, pa.int64()).cast(schema.field("event_timestamp").type),
        pa.array([version] * n, pa.int64()).cast(schema.field("created_timestamp").type),
        pa.array([version] * n, pa.int64()),
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


@pytest.fixture
def clustered(redis_cluster: RedisNodes) -> Iterator[RedisOnlineStore]:
    """A store on the cluster, in a project of its own."""
    target = RedisTarget.from_connection_string(redis_cluster.connection_string, kind=RedisKind.CLUSTER)
    store = RedisOnlineStore(target, project=f"p{secrets.token_hex(4)}")
    yield store
    store.teardown()
    store.close()


class TestCluster:
    """Six real processes."""

    def test_put_and_get(self, clustered: RedisOnlineStore) -> None:
        """Thousands of rows over all slots: written, compared, overwritten where told, read in order."""
        names = [clustered.project.encode() + b":rows:v:" + name for name in NAMES]
        assert clustered.put(names, [value(i) for i in range(len(names))]) == len(names)
        assert clustered.put(names[:900], [value(i % 2 * 10**6) for i in range(900)]) == 451
        found = clustered.get([*names[::-1], b"nothing"])
        assert found.pop() is None
        versions = [version_of(data) for data in found[::-1]]
        assert versions[:900] == [10**6 if i % 2 else i for i in range(900)]
        assert versions[900:] == list(range(900, 6_000))
        assert clustered.put(names[:5], [value(0)] * 5, Storing(compare=False)) == 5
        assert [version_of(data) for data in clustered.get(names[:5])] == [0] * 5

    def test_the_platforms_rows_and_marks(self, clustered: RedisOnlineStore) -> None:
        """Rows and pending marks together; a view and a project are removed, and nobody else's keys."""
        clustered.ping()
        keys = [(f"a{i}",) for i in range(300)]
        assert clustered.write(VIEW, rows([key[0] for key in keys], 5)) == 300
        clustered.mark_pending(keys[:3])
        [values], tokens = clustered.read_with_pending([(VIEW, keys)], keys[1:5])
        assert RowBlock.from_packed(VIEW, values).int64("n")[0].tolist() == [5] * 300
        assert set(tokens) == set(keys[1:3])
        clustered.clear_pending(tokens)
        assert set(clustered.all_pending()) == {keys[0]}
        target = clustered.__getstate__()["_target"]
        other = RedisOnlineStore(target, project=f"{clustered.project}x")
        other.write(VIEW, rows(["a1"], 5))
        clustered.delete_view(VIEW)
        assert clustered.read([(VIEW, keys)]) == [[None] * 300]
        clustered.write(VIEW, rows(["a1"], 5))
        clustered.teardown()
        assert clustered.read([(VIEW, keys)]) == [[None] * 300]
        assert clustered.all_pending() == {}
        assert other.read([(VIEW, [("a1",)])])[0][0] is not None
        other.teardown()
        other.close()

    def test_expiry(self, clustered: RedisOnlineStore) -> None:
        """Each row has its own end."""
        names = [clustered.project.encode() + b":rows:v:%d" % i for i in range(40)]
        now_ms = int(time.time() * 1_000)
        ends = [now_ms - 1 if i % 2 else now_ms + 60_000 for i in range(40)]
        clustered.put(names, [value(1)] * 40, Storing(at_ms=ends))
        assert [data is None for data in clustered.get(names)] == [bool(i % 2) for i in range(40)]

    def test_through_feast(self, redis_cluster: RedisNodes, tmp_path: Path) -> None:
        """Feast's own options lead to the cluster: materialize, read, tear down."""
        store = feast_store(tmp_path, redis_cluster.connection_string, redis_type="redis_cluster")
        view = apply_view(store, tmp_path)
        write_source(view, {f"a{i}": i for i in range(2_000)}, NOW)
        store.materialize(NOW - timedelta(days=1), NOW + timedelta(seconds=1))
        keys = [{"account_id": f"a{i}"} for i in (0, 5, 1_999, 2_000)]
        assert store.get_online_features(["theirs:n"], keys).to_dict()["n"] == [0, 5, 1_999, None]
        store.teardown()

    def test_a_master_is_lost(self, start_cluster: Callable[[], RedisNodes]) -> None:
        """A master's end and its replica's promotion: reads and writes go on, and what was replicated is there."""
        nodes = start_cluster()
        target = RedisTarget.from_connection_string(nodes.connection_string, kind=RedisKind.CLUSTER)
        store = RedisOnlineStore(target, project="lost")
        try:
            names = NAMES[:300]
            store.put(names, [value(1)] * 300)
            time.sleep(0.3)  # replication is asynchronous
            nodes.processes[nodes.ports[1]].kill()
            limit = time.monotonic() + 30
            while True:
                try:
                    assert store.put(names, [value(2)] * 300) >= 0
                    break
                except StoreUnavailableError:
                    assert time.monotonic() < limit
                    time.sleep(0.2)
            assert [version_of(data) for data in store.get(names)] == [2] * 300
        finally:
            store.close()


class TestTls:
    """A certificate that has to be trusted."""

    def test_platform_settings(self, redis_tls: TlsFront) -> None:
        """RINGFENCE_REDIS_TLS and its certificate; without the certificate the server is not believed."""
        plain = redis_tls.settings.model_copy(update={"port": redis_tls.port, "tls": True})
        settings = plain.model_copy(update={"tls_ca_file": str(redis_tls.ca_file)})
        store = RedisOnlineStore(settings, project="tls")
        assert store.put(NAMES[:10], [value(3)] * 10) == 10
        assert [version_of(data) for data in store.get(NAMES[:10])] == [3] * 10
        store.close()
        doubting = RedisOnlineStore(plain, project="tls")
        with pytest.raises(StoreUnavailableError, match="certificate verify failed"):
            doubting.ping()
        doubting.close()

    def test_feasts_options(self, redis_tls: TlsFront, tmp_path: Path) -> None:
        """The connection string of Feast's own store, `ssl` and its certificate in it."""
        password = redis_tls.settings.password.get_secret_value()
        address = f"{HOST}:{redis_tls.port},ssl=true,ssl_ca_certs={redis_tls.ca_file},password={password}"
        store = feast_store(tmp_path, f"{address},db={redis_tls.settings.db}")
        apply_view(store, tmp_path)
        write_now(store, {"a": 1}, NOW)
        assert store.get_online_features(["theirs:n"], [{"account_id": "a"}]).to_dict()["n"] == [1]
        store.teardown()


def test_sentinel(redis_sentinel: int, redis_settings: RedisSettings, tmp_path: Path) -> None:
    """Sentinel says where the master is; rows go there, and another name is no master."""
    password = redis_settings.password.get_secret_value()
    address = f"{HOST}:{redis_sentinel},password={password},db={redis_settings.db}"
    store = feast_store(tmp_path, address, redis_type="redis_sentinel", sentinel_master="shop")
    apply_view(store, tmp_path)
    write_now(store, {"a": 1}, NOW)
    assert store.get_online_features(["theirs:n"], [{"account_id": "a"}]).to_dict()["n"] == [1]
    direct = RedisOnlineStore(redis_settings, project=store.project)
    direct.teardown()
    direct.close()
    assert store.get_online_features(["theirs:n"], [{"account_id": "a"}]).to_dict()["n"] == [None]
    unknown = RedisTarget.from_connection_string(address, kind=RedisKind.SENTINEL, sentinel_master="other")
    with pytest.raises(StoreUnavailableError, match="MasterNotFound"):
        RedisOnlineStore(unknown, project="p").ping()


def test_one_row_several_times_in_a_batch(redis_settings: RedisSettings) -> None:
    """The newest of a batch stays, with its own expiry; and the last one where nothing is compared."""
    store = RedisOnlineStore(redis_settings, project="p")
    later_ms = int(time.time() * 1_000) + 60_000
    ends = [later_ms, later_ms, later_ms - 120_000, later_ms, later_ms]
    versions = [value(version) for version in (2, 3, 1, 3, 2)]
    assert store.put([b"a"] * 5, versions, Storing(at_ms=ends)) == 3
    assert version_of(store.get([b"a"])[0]) == 3
    assert store.put([b"a"] * 5, versions, Storing(compare=False)) == 5
    assert version_of(store.get([b"a"])[0]) == 2
    assert store.put([b"a", b"b", b"a"], [value(1), value(1), value(1, schema=2)]) == 2
    assert store.get([b"a", b"b"]) == [value(1, schema=2), value(1)]
    store.close()


def test_connection_strings() -> None:
    """What is wrong is said without the password; values are JSON where they can be."""
    target = RedisTarget.from_connection_string("a:1, b:2,db=3,ssl=true,password=p=q,username=u")
    assert target.nodes == (("a", 1), ("b", 2))
    assert target.options == {"db": 3, "ssl": True, "password": "p=q", "username": "u"}
    assert "p=q" not in repr(target)
    with pytest.raises(SettingsError, match="expected host:port") as caught:
        RedisTarget.from_connection_string("hidden,password=secret")
    assert "hidden" not in str(caught.value)


# ---------------------------------------------------------------- through Feast


def feast_store(folder: Path, address: str, **options: Any) -> FeatureStore:
    """Feast over our online store and engine."""
    kind = "feature_repo.stores.online.RedisPackedOnlineStore"
    return FeatureStore(
        config=RepoConfig(
            project=f"p{secrets.token_hex(4)}",
            registry={"path": str(folder / "registry.db"), "serve_features_while_materializing": True},
            provider="local",
            online_store={"type": kind, "connection_string": address, **options},
            batch_engine={"type": "feature_repo.stores.engine.ColumnarComputeEngine"},
            entity_key_serialization_version=3,
        )
    )


def apply_view(store: FeatureStore, folder: Path, *, ttl: timedelta = timedelta(0)) -> FeatureView:
    """A view of a number, and as many copies of it as the number says modulo 5."""
    source = FileSource(name="s", path=str(folder / "source.parquet"), timestamp_field="at")
    schema = [
        Field(name="account_id", dtype=String),
        Field(name="n", dtype=Int64),
        Field(name="copies", dtype=Array(Int64)),
    ]
    view = FeatureView(name="theirs", entities=[ACCOUNT], schema=schema, source=source, ttl=ttl)
    store.apply([ACCOUNT, view])
    return view


def frame_of(numbers: dict[str, int], at: datetime) -> pd.DataFrame:
    copies = [[n] * (n % 5 + 1) for n in numbers.values()]
    return pd.DataFrame({"account_id": list(numbers), "at": at, "n": list(numbers.values()), "copies": copies})


def write_source(view: FeatureView, numbers: dict[str, int], at: datetime) -> None:
    pq.write_table(pa.Table.from_pandas(frame_of(numbers, at)), view.batch_source.path)


def write_now(store: FeatureStore, numbers: dict[str, int], at: datetime) -> None:
    store.write_to_online_store("theirs", frame_of(numbers, at))


@pytest.fixture
def address(redis_settings: RedisSettings) -> str:
    """The test's Redis as Feast's configuration has it."""
    password = redis_settings.password.get_secret_value()
    return f"{redis_settings.host}:{redis_settings.port},password={password},db={redis_settings.db}"


class TestExpiry:
    """How long rows stay."""

    def numbers(self, store: FeatureStore, keys: Sequence[str]) -> list[int | None]:
        found = store.get_online_features(["theirs:n"], [{"account_id": key} for key in keys])
        answers: list[int | None] = found.to_dict()["n"]
        return answers

    def test_by_view(self, address: str, tmp_path: Path) -> None:
        """`key_ttl_seconds` for one view by name: its rows go, after their last write."""
        store = feast_store(tmp_path, address, key_ttl_seconds={"theirs": 1, "other": 60})
        apply_view(store, tmp_path)
        write_now(store, {"a": 1}, NOW)
        assert self.numbers(store, ["a"]) == [1]
        time.sleep(1.1)
        assert self.numbers(store, ["a"]) == [None]
        kept = feast_store(tmp_path, address, key_ttl_seconds={"other": 1})
        apply_view(kept, tmp_path)
        write_now(kept, {"a": 1}, NOW)
        time.sleep(1.1)
        assert self.numbers(kept, ["a"]) == [1]

    def test_with_the_views_ttl(self, address: str, tmp_path: Path) -> None:
        """Each row goes once it is older than the view allows; one that is already is not kept."""
        store = feast_store(tmp_path, address, expire_with_view_ttl=True)
        apply_view(store, tmp_path, ttl=timedelta(hours=1))
        write_now(store, {"old": 1}, NOW - timedelta(hours=2))
        write_now(store, {"soon": 2}, datetime.now(UTC) - timedelta(hours=1) + timedelta(seconds=1.5))
        write_now(store, {"new": 3}, NOW)
        assert self.numbers(store, ["old", "soon", "new"]) == [None, 2, 3]
        time.sleep(1.6)
        assert self.numbers(store, ["old", "soon", "new"]) == [None, None, 3]


class TestConcurrency:
    """Nothing is lost, nothing older wins, nothing is mixed."""

    def test_reads_through_a_whole_materialization(self, address: str, tmp_path: Path) -> None:
        """While every row is replaced each answer is whole: the old row or the new one, never neither."""
        store = feast_store(tmp_path, address)
        view = apply_view(store, tmp_path)
        count = 8_000
        write_source(view, {f"a{i}": 1 for i in range(count)}, NOW - timedelta(hours=2))
        store.materialize(NOW - timedelta(days=1), NOW)
        write_source(view, {f"a{i}": 3 for i in range(count)}, NOW - timedelta(hours=1))
        asked = [{"account_id": f"a{i}"} for i in range(0, count, count // 50)]
        done, seen = threading.Event(), set()

        def watch(reader: FeatureStore) -> int:
            reads = 0
            while not done.is_set() or reads == 0:
                try:
                    found = reader.get_online_features(["theirs:n", "theirs:copies"], asked).to_dict()
                except FeatureViewNotFoundException:
                    # Feast's registry, before any store is asked: its file is read while another store writes it.
                    reader.refresh_registry()
                    continue
                for n, copies in zip(found["n"], found["copies"], strict=True):
                    assert n in (1, 3)
                    assert copies == [n] * (n % 5 + 1)
                    seen.add(n)
                reads += 1
            return reads

        readers = [FeatureStore(config=store.config) for _ in range(2)]
        for reader in readers:
            reader.get_online_features(["theirs:n"], asked)
        with ThreadPoolExecutor(2) as pool:
            watching = [pool.submit(watch, reader) for reader in readers]
            try:
                store.materialize(NOW - timedelta(days=1), NOW)
            finally:
                done.set()
            assert all(one.result() > 1 for one in watching)
        assert store.get_online_features(["theirs:n"], asked).to_dict()["n"] == [3] * len(asked)
        assert 1 in seen

    @pytest.mark.parametrize("kind", ["redis", "cluster"])
    def test_eight_writers_and_eight_readers(self, kind: str, request: pytest.FixtureRequest) -> None:
        """Each entity ends at the newest version that anybody wrote, and no reader sees it go back."""
        if kind == "redis":
            store = RedisOnlineStore(request.getfixturevalue("redis_settings"), project="many")
        else:
            store = request.getfixturevalue("clustered")
        names = [store.project.encode() + b":rows:v:%d" % i for i in range(50)]
        done = threading.Event()

        def write(seed: int) -> None:
            # Every writer's versions differ from all others', and come newest first, oldest first, or in turns.
            versions = [step * 8 + seed + 1 for step in range(40)]
            for version in versions[::-1] if seed % 2 else versions:
                store.put(names, [value(version)] * len(names))

        def watch() -> None:
            last = [0] * len(names)
            while not done.is_set():
                found = [0 if data is None else version_of(data) for data in store.get(names)]
                assert all(new >= old for new, old in zip(found, last, strict=True))
                last = found

        with ThreadPoolExecutor(16) as pool:
            watching = [pool.submit(watch) for _ in range(8)]
            try:
                for one in [pool.submit(write, seed) for seed in range(8)]:
                    one.result()
            finally:
                done.set()
            for one in watching:
                one.result()
        assert [version_of(data) for data in store.get(names)] == [320] * len(names)
        if kind == "redis":
            store.close()

    def test_a_correcting_backfill_changes_the_online_value(self, address: str, tmp_path: Path) -> None:
        """Rows of the same event times, materialized again, replace those that are there."""
        store = feast_store(tmp_path, address)
        view = apply_view(store, tmp_path)
        for number in (1, 2):
            write_source(view, {"a": number}, NOW - timedelta(hours=1))
            store.materialize(NOW - timedelta(days=1), NOW)
        assert store.get_online_features(["theirs:n"], [{"account_id": "a"}]).to_dict()["n"] == [2]
