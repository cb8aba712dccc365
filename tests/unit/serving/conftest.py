"""A small world to serve from: three event views, a slice view, a model that reads everything, stores in memory."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from graph_features.clock import created_timestamp, from_ms
from graph_features.errors import StoreUnavailableError
from graph_features.input_spec import InputSpec
from graph_features.schema import Cadence, DType, EntityKey, FeatureSchema, Renewal, ViewSchema
from graph_features.stores.codec import encode, from_table
from graph_features.tuples import TransactionColumns, TupleBlocks, build_tuples
from serving.engineering import FeatureEngineering, Moment, PackedRows
from serving.metrics import Metrics
from serving.models import LoadedModel
from serving.pool import InlinePool
from serving.predict import Predictor
from serving.scorer import ModelRef, ShardScorer
from training.bundle import EXAMPLE_FILE, ONNX_FILE, BundleInfo

T0 = 1_700_000_000_000
"""An instant for tests: 2023-11-14T22:13:20Z."""


def scalar(name: str, dtype: DType = DType.INT64, empty: float | None = 0) -> FeatureSchema:
    return FeatureSchema(name=name, dtype=dtype, description=name, unit="payments", range="any", empty=empty)


def view(
    name: str, entity: str, *features: FeatureSchema, slice_age_s: int | None = None, renewed_by: Renewal | None = None
) -> ViewSchema:
    return ViewSchema(
        name=name,
        entity=entity,
        cadence=Cadence.EVENT if slice_age_s is None else Cadence.SLICE,
        description=name,
        features=features,
        renewed_by=(renewed_by or Renewal.TRANSACTION,) if slice_age_s is None else (),
        max_age_s=slice_age_s,
        code_hash=f"hash-{name}",
    )


ACTIVITY = view(
    "activity",
    "account",
    scalar("sent"),
    scalar("mean", DType.FLOAT64, None),
    scalar("last", DType.TIMESTAMP, None),
)
EXPOSURE = view("exposure", "account", scalar("frauds"), renewed_by=Renewal.LABEL)
RANKS = view("ranks", "account", scalar("rank", DType.FLOAT64, None), slice_age_s=3_600)
PAIR = view("pair", "pair", scalar("count"))
VIEWS = (ACTIVITY, EXPOSURE, RANKS, PAIR)
SCHEMAS = {item.name: item for item in VIEWS}
FEATURE_HASH = "feature-set-1"


def row(schema: ViewSchema, key: EntityKey, as_of_ms: int, *, seq: int = 1, **values: Any) -> pa.Table:
    """One row of a view."""
    named = {**dict(zip(schema.keys, key, strict=True)), **values}
    named |= {"event_timestamp": from_ms(as_of_ms), "created_timestamp": created_timestamp(seq)}
    return pa.Table.from_pylist([{name: named.get(name) for name in schema.arrow_schema.names}], schema.arrow_schema)


def packed(schema: ViewSchema, key: EntityKey, as_of_ms: int, **values: Any) -> bytes:
    return encode(schema, row(schema, key, as_of_ms, **values))[0]


class MemoryOnline:
    """An OnlineStore in dictionaries; counts reads."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, EntityKey], tuple[tuple[int, int], bytes]] = {}
        self.marks: dict[EntityKey, str] = {}
        self.reads = 0
        self.down = False
        self._token = 0

    def ping(self) -> None:
        if self.down:
            raise StoreUnavailableError("the online store is away")

    def put(self, schema: ViewSchema, key: EntityKey, as_of_ms: int, **values: Any) -> None:
        self.write(schema, row(schema, key, as_of_ms, **values))

    def write(self, view: ViewSchema, table: pa.Table) -> int:
        columns, values = from_table(view, table), encode(view, table)
        stored = 0
        for at, value in enumerate(values):
            key = tuple(table[name][at].as_py() for name in view.keys)
            version = (int(columns.as_of_ms[at]), int(columns.created_us[at]))
            if self.rows.get((view.name, key), ((-1, -1), b""))[0] <= version:
                self.rows[(view.name, key)] = (version, value)
                stored += 1
        return stored

    def read(self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]]) -> list[list[bytes | None]]:
        self.ping()
        self.reads += 1
        return [[self.rows.get((view.name, key), (None, None))[1] for key in keys] for view, keys in requests]

    def read_with_pending(
        self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]], keys: Sequence[EntityKey]
    ) -> tuple[list[list[bytes | None]], dict[EntityKey, str]]:
        tokens = self.pending(keys)
        return self.read(requests), tokens

    def mark_pending(self, keys: Sequence[EntityKey]) -> None:
        self.ping()
        self._token += 1
        self.marks |= dict.fromkeys(keys, str(self._token))

    def pending(self, keys: Sequence[EntityKey]) -> dict[EntityKey, str]:
        return {key: self.marks[key] for key in keys if key in self.marks}

    def all_pending(self) -> dict[EntityKey, str]:
        return dict(self.marks)

    def clear_pending(self, tokens: Mapping[EntityKey, str]) -> None:
        for key, token in tokens.items():
            if self.marks.get(key) == token:
                del self.marks[key]

    def delete_view(self, view: ViewSchema) -> None:
        self.rows = {key: value for key, value in self.rows.items() if key[0] != view.name}

    def teardown(self) -> None:
        self.rows.clear()
        self.marks.clear()

    def close(self) -> None: ...


@dataclass
class World:
    """What the feature workers would find in the records; `refresh` copies `truth` online and clears the marks."""

    online: MemoryOnline
    known: set[str] = field(default_factory=set)
    truth: dict[EntityKey, list[tuple[ViewSchema, int, dict[str, Any]]]] = field(default_factory=dict)
    past: dict[Moment, PackedRows | None] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    before_answer: Callable[[str], None] = lambda method: None
    failing: set[EntityKey] = field(default_factory=set)

    def seen(self, accounts: Sequence[str], before_ms: int) -> set[str]:
        self.calls.append(("seen", (tuple(accounts), before_ms)))
        self.before_answer("seen")
        return self.known & set(accounts)

    def refresh(self, keys: Sequence[EntityKey]) -> dict[EntityKey, str]:
        self.calls.append(("refresh", tuple(keys)))
        tokens = self.online.pending(keys)
        self.before_answer("refresh")
        for key in set(keys) - self.failing:
            for schema, as_of_ms, values in self.truth.get(key, []):
                self.online.put(schema, key, as_of_ms, **values)
        self.online.clear_pending({key: token for key, token in tokens.items() if key not in self.failing})
        return {key: "told to fail" for key in keys if key in self.failing}

    def rows_at(self, moments: Sequence[Moment]) -> dict[Moment, PackedRows | None]:
        self.calls.append(("rows_at", tuple(moments)))
        self.before_answer("rows_at")
        return {moment: self.past.get(moment, {}) for moment in moments}

    def sync_graph(self) -> str:
        self.calls.append(("sync_graph", None))
        self.before_answer("sync_graph")
        return "synced"

    def called(self, method: str) -> list[Any]:
        return [given for name, given in self.calls if name == method]


def spec() -> InputSpec:
    return InputSpec.derive(VIEWS, feature_hash=FEATURE_HASH, profile=(), neighbours=4)


def write_model(folder: Path, *, feature_hash: str = FEATURE_HASH, scale: float = 1.0, threshold: float = 0.5) -> Path:
    """A bundle whose score depends on every input and tells null from zero: sigmoid of sums and of null counts."""
    import onnx
    from onnx import TensorProto, helper

    nodes, parts = [], []
    for place, name in enumerate(("sender_x", "receiver_x", "transaction_x")):
        nodes += [
            helper.make_node("IsNaN", [name], [f"{name}_null"]),
            helper.make_node("Where", [f"{name}_null", "zero", name], [f"{name}_known"]),
            helper.make_node("ReduceSum", [f"{name}_known", "axis"], [f"{name}_sum"], keepdims=0),
            helper.make_node("Cast", [f"{name}_null"], [f"{name}_ones"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", [f"{name}_ones", "axis"], [f"{name}_nulls"], keepdims=0),
            helper.make_node("Mul", [f"{name}_nulls", f"weight_{place}"], [f"{name}_weighted"]),
            helper.make_node("Softsign", [f"{name}_sum"], [f"{name}_soft"]),
            helper.make_node("Add", [f"{name}_soft", f"{name}_weighted"], [f"{name}_part"]),
        ]
        parts.append(f"{name}_part")
    nodes += [
        helper.make_node("Sum", parts, ["logit"]),
        helper.make_node("Mul", ["logit", "scale"], ["scaled"]),
        helper.make_node("Sigmoid", ["scaled"], ["score"]),
    ]
    inputs = spec()
    widths = {
        "sender_x": len(inputs.account),
        "receiver_x": len(inputs.account),
        "transaction_x": len(inputs.transaction_names),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", width]) for name, width in widths.items()],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["B"])],
        [
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
            *(helper.make_tensor(f"weight_{at}", TensorProto.FLOAT, [], [0.01 * (at + 1)]) for at in range(3)),
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / ONNX_FILE)
    BundleInfo(
        inputs=InputSpec.from_json(json.loads(json.dumps({**inputs.to_json(), "feature_hash": feature_hash}))),
        model={},
        threshold=threshold,
        calibration={},
        git_revision="test",
        seed=0,
    ).save(folder)
    payments = payments_of([("a", "b", T0), ("c", "d", T0)])
    empty = TupleBlocks.from_packed(inputs, [[None] * 4 for _ in VIEWS])
    np.savez(folder / EXAMPLE_FILE, allow_pickle=False, **build_tuples(inputs, payments, empty).feeds())
    return folder


def payments_of(rows: Sequence[tuple[str, str, int]], amount: int = 10_000) -> TransactionColumns:
    """Payments from (sender, receiver, event_ms)."""
    return TransactionColumns.from_mapping(
        {
            "sender_id": [sender for sender, _, _ in rows],
            "receiver_id": [receiver for _, receiver, _ in rows],
            "event_timestamp": np.array([ms for _, _, ms in rows], np.int64),
            "amount_base": np.full(len(rows), amount, np.int64),
        }
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "1")


@pytest.fixture
def online() -> MemoryOnline:
    return MemoryOnline()


@pytest.fixture
def world(online: MemoryOnline) -> World:
    return World(online=online)


@pytest.fixture
def model(model_folder: Path) -> LoadedModel:
    from training.bundle import read_info

    ref = ModelRef(name="ringfence", version="1", alias="champion", path=str(model_folder))
    return LoadedModel(ref=ref, info=read_info(model_folder))


@pytest.fixture
def tiny() -> SimpleNamespace:
    """Names of the small world that tests refer to (test modules import nothing from each other)."""
    return SimpleNamespace(
        T0=T0,
        ACTIVITY=ACTIVITY,
        EXPOSURE=EXPOSURE,
        RANKS=RANKS,
        PAIR=PAIR,
        VIEWS=VIEWS,
        SCHEMAS=SCHEMAS,
        FEATURE_HASH=FEATURE_HASH,
        spec=spec,
        row=row,
        packed=packed,
        payments_of=payments_of,
        write_model=write_model,
        MemoryOnline=MemoryOnline,
        World=World,
    )


@pytest.fixture
def make_predictor(online: MemoryOnline, world: World) -> Any:
    """make_predictor(shard_rows=..., deadline_s=...): a predictor over the small world, in this process."""
    pools: list[InlinePool] = []

    def make(*, shard_rows: int = 200, deadline_s: float = 5.0) -> Predictor:
        inference = InlinePool(name="inference", size=4, build=lambda: ShardScorer(online))
        features = InlinePool(name="features", size=2, build=lambda: world)
        pools.extend((inference, features))
        return Predictor(
            pool=inference,
            engineering=FeatureEngineering(pool=features, task_timeout_s=5.0, metrics=Metrics()),
            shard_rows=shard_rows,
            score_timeout_s=5.0,
            deadline_s=deadline_s,
        )

    yield make
    for pool in pools:
        pool.close(drain_s=1)


# ---------------------------------------------------------------- the whole application over the small world

PAYMENT = {
    "transaction_id": "t1",
    "event_timestamp": "2023-11-14T22:13:20Z",
    "sender_id": "a",
    "receiver_id": "b",
    "amount": 129.9,
    "currency": "EUR",
}


class Application:
    """The application, its client and the world behind it."""

    def __init__(self, home: Path, world: World, model_folder: Path | None, **settings: Any) -> None:
        from graph_features.settings import PlatformSettings, ServingSettings

        self.home = home
        self.guard = settings.pop("guard", None)
        self.offline = SimpleNamespace(written=[])
        self.offline.write = lambda view, table, part: self.offline.written.append((view.name, table, part))
        self.world = world
        self.online = world.online
        self.versions: list[tuple[str, Path]] = [] if model_folder is None else [("1", model_folder)]
        self.platform = PlatformSettings(home=home)
        self.settings = ServingSettings(**{"model_poll_s": 0.05, "decision_retention_days": 0, **settings})
        self.services: Any = None

    def resolve(self) -> tuple[str, Path]:
        from graph_features.errors import ModelError

        if not self.versions:
            raise ModelError("no model 'ringfence' with alias 'champion': train and promote one")
        return self.versions[-1]

    def build(self) -> Any:
        from graph_features.jobs.ledger import open_ledger
        from graph_features.jobs.parameters import BackfillParameters
        from graph_features.jobs.runner import JobKind
        from graph_features.settings import IngestSettings
        from graph_features.sources.sqlite import SqliteRecords
        from serving.decisions import DecisionLog, open_engine
        from serving.graph_sync import GraphSync
        from serving.jobs import Jobs
        from serving.journal import DecisionJournal
        from serving.models import ModelFollower
        from serving.payments import Payments
        from serving.services import Services, Stores
        from serving.shipping import DecisionShipper

        metrics = Metrics()
        records = SqliteRecords(self.home / "records.sqlite")
        records.create_schema()
        shipper = InlinePool(name="decisions", size=1, build=lambda: DecisionShipper(self.platform, {}))
        decisions = DecisionJournal(
            DecisionLog(open_engine(self.platform)), self.home / "decisions", shipper, max_bytes=1 << 30
        )
        decisions.start()
        inference = InlinePool(name="inference", size=1, build=lambda: ShardScorer(self.online))
        features = InlinePool(name="features", size=2, build=lambda: self.world)
        engineering = FeatureEngineering(pool=features, task_timeout_s=5.0, metrics=metrics)
        self.services = Services(
            platform=self.platform,
            settings=self.settings,
            payments=Payments(IngestSettings(rates={"USD": "0.5"}), future_skew_ms=self.settings.future_skew_s * 1_000),
            stores=Stores(
                records=records,
                online=self.online,
                graph_ping=lambda: None,
                offline_ping=lambda: None,
                offline=lambda: self.offline,
                schemas=SCHEMAS,
            ),
            inference=inference,
            features=features,
            engineering=engineering,
            graph_sync=GraphSync(pool=features, timeout_s=5.0),
            predictor=Predictor(
                pool=inference, engineering=engineering, shard_rows=3, score_timeout_s=5.0, deadline_s=2.0
            ),
            follower=ModelFollower(
                name="ringfence",
                alias="champion",
                resolve=self.resolve,
                feature_hash=lambda views: FEATURE_HASH,
                pool=inference,
                metrics=metrics,
            ),
            decisions=decisions,
            jobs=Jobs(
                ledger=open_ledger(self.platform),
                kinds={
                    "materialize": JobKind(run=lambda context: None),
                    "backfill": JobKind(run=lambda context: None, parameters=BackfillParameters),
                },
                open_pool=lambda: InlinePool(name="jobs", size=1, build=lambda: SimpleNamespace(run=str)),
            ),
            metrics=metrics,
            **({} if self.guard is None else {"guard": self.guard}),
            close_stores=records.close,
        )
        return self.services


class Client:
    """A blocking client of an application that runs, lifespan and all, on a loop in a thread."""

    def __init__(self, app: Any) -> None:
        import httpx

        self._app = app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._lifespan = app.router.lifespan_context(app)
        self.run(self._lifespan.__aenter__())
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30)

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    def get(self, url: str, **options: Any) -> Any:
        return self.run(self._http.get(url, **options))

    def post(self, url: str, **options: Any) -> Any:
        return self.run(self._http.post(url, **options))

    def together(self, *requests: tuple[str, str, dict[str, Any]]) -> list[Any]:
        """Send (method, url, options) at the same time."""

        async def send() -> list[Any]:
            return await asyncio.gather(
                *(self._http.request(method, url, **options) for method, url, options in requests)
            )

        return self.run(send())  # type: ignore[no-any-return]

    def close(self) -> None:
        self.run(self._http.aclose())
        self.run(self._lifespan.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()


def start_app(home: Path, world: World, model_folder: Path | None, **settings: Any) -> tuple[Client, Application]:
    from serving.app import create_app

    application = Application(home, world, model_folder, **settings)

    @asynccontextmanager
    async def build(platform: Any, settings: Any) -> Any:
        services = application.build()
        await services.follower.step()
        await services.start()
        try:
            yield services
        finally:
            await services.stop()

    return Client(create_app(application.platform, application.settings, build=build)), application


@pytest.fixture
def run_app(tmp_path: Path, world: World, model_folder: Path) -> Any:
    """run_app(model=True, **settings): a client of the application over the small world, ready to score."""
    clients: list[Client] = []

    def start(*, model: bool = True, **settings: Any) -> tuple[Client, Application]:
        client, application = start_app(tmp_path, world, model_folder if model else None, **settings)
        clients.append(client)
        return client, application

    yield start
    for client in clients:
        client.close()


@pytest.fixture(scope="session")
def shared_client(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Any:
    """One application for tests that change nothing in it."""
    client, _ = start_app(tmp_path_factory.mktemp("shared"), World(online=MemoryOnline()), model_folder)
    yield client
    client.close()


@pytest.fixture
def payment() -> dict[str, Any]:
    return dict(PAYMENT)
