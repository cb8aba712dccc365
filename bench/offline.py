"""The PostgreSQL offline store against Feast's own: historical features and writes. `python -m bench.stores` runs it.

Both sides read the same tables, which have the index that ours uses and are vacuumed and analysed, so that Feast's
store may use it too. It asks once more for the fewest entity rows with that index gone: Feast's store makes none, ours
does in `feast apply`. Each side runs in a process of its own; rounds alternate. Answers are compared before times are.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa

from bench.report import Figure, publish
from bench.timing import note, seconds
from graph_features.schema import Cadence, DType, FeatureSchema, ViewSchema
from graph_features.settings import PostgresSettings
from graph_features.stores.postgres import PostgresOfflineStore

ROWS = 1_000_000
ACCOUNTS = 100_000
VIEWS, FEATURES, COUNTS = 4, 15, 5
"""Of each view's features so many are int64, the others float64; one in fifty is null."""
PERIOD_MS, END_MS = 60 * 86_400_000, 1_714_521_600_000
ENTITY_ROWS = (10_000, 100_000, 500_000)
GOALS = {100_000: 3, 500_000: 3}
GOAL_WITHOUT_INDEX = 25
PEAK_GOAL_MB = 1_500
ROUNDS = 5
LIMIT_S = 300.0
"""Feast's store is asked again while a round of it takes less than a fifth of this, and is ended after it."""
WRITTEN_ROWS = 20_000
KINDS = {"feast": "postgres", "ours": "feature_repo.stores.postgres.RingfencePostgreSQLOfflineStore"}


def figures(*, rows: int = ROWS, sizes: tuple[int, ...] = ENTITY_ROWS, limit_s: float = LIMIT_S) -> list[Figure]:
    """Start PostgreSQL, fill it and measure."""
    # Here and below, so that they do not count as memory of a side's process.
    from bench.homes import guarded_home
    from infra.local import servers

    with guarded_home() as home, tempfile.TemporaryDirectory(prefix="ringfence-bench-") as folder:
        settings = servers.up(home, only=["postgres"], durable=False).postgres
        note(f"filling {VIEWS} tables of {rows:,} rows")
        with closing(PostgresOfflineStore(settings)) as store:
            for number in range(VIEWS):
                store.create_view(_view(number))
                store.write(_view(number), _rows(number, rows), part="all")
        _run(settings, "VACUUM ANALYZE")
        found: list[Figure] = []
        for size in sizes:
            found += _historical(settings, Path(folder), rows, size, limit_s)
        found.append(_without_index(settings, Path(folder), found[0].value, rows, sizes[0], limit_s))
        return [*found, *_written(settings)]


def _view(number: int) -> ViewSchema:
    features = [
        FeatureSchema(
            name=f"v{number}_f{i:02d}",
            dtype=DType.INT64 if i < COUNTS else DType.FLOAT64,
            description="Anything.",
            unit="units",
            range="any",
        )
        for i in range(FEATURES)
    ]
    return ViewSchema(
        name=f"bench_{number}",
        entity="account",
        cadence=Cadence.EVENT,
        description="Rows of a benchmark.",
        features=tuple(features),
    )


def _rows(number: int, count: int) -> pa.Table:
    draw = np.random.default_rng([7, number])
    at_ms = np.sort(draw.integers(END_MS - PERIOD_MS, END_MS, count))
    schema = _view(number).arrow_schema
    columns = [
        _accounts(draw, count, ACCOUNTS),
        pa.array(at_ms).cast(schema.field("event_timestamp").type),
        pa.array(at_ms * 1_000 + np.arange(count) % 1_000).cast(schema.field("created_timestamp").type),
    ]
    for i in range(FEATURES):
        values = draw.integers(0, 10**6, count) if i < COUNTS else draw.normal(size=count)
        columns.append(pa.array(values, mask=draw.random(count) < 0.02))
    return pa.Table.from_arrays(columns, schema=schema)


def _accounts(draw: np.random.Generator, count: int, among: int) -> pa.Array:
    return pa.array(np.char.add("acc-", draw.integers(0, among, count).astype(str)))


def _asked(size: int) -> pd.DataFrame:
    """Entity rows in no order; one in a hundred is of an account that has no rows."""
    draw = np.random.default_rng([8, size])
    at_ms = draw.integers(END_MS - PERIOD_MS, END_MS, size)
    columns = {
        "account_id": _accounts(draw, size, ACCOUNTS + ACCOUNTS // 100).to_pandas(),
        "event_timestamp": pd.to_datetime(at_ms, unit="ms", utc=True),
        "number": np.arange(size),
    }
    return pd.DataFrame(columns)


# ---------------------------------------------------------------- in a process of each side


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What one call took, and a number that stands for all that it answered."""

    seconds: float
    peak_mb: float
    rows: int
    digest: int


def _ask(settings: PostgresSettings, folder: Path, kind: str, size: int) -> _Answer:
    """One `get_historical_features(...).to_df()`."""
    from feast import FeatureStore, RepoConfig

    place = {name: getattr(settings, name) for name in ("host", "port", "user", "database", "sslmode")}
    offline = {"type": kind, **place, "password": settings.password.get_secret_value(), "db_schema": "public"}
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            registry=str(folder / "registry.db"),
            provider="local",
            offline_store=offline,
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    if not store.list_feature_views():
        store.apply(_definitions())
    refs = [f"view{number}:{name}" for number in range(VIEWS) for name in _view(number).names]
    asked = _asked(size)
    answer = pd.DataFrame()

    def work() -> None:
        nonlocal answer
        answer = store.get_historical_features(asked, refs).to_df()

    taken = seconds(work)
    peak_mb = _peak_mb()
    ordered = answer.sort_values("number", ignore_index=True)[[ref.partition(":")[2] for ref in refs]]
    hashes = pd.util.hash_pandas_object(ordered.astype(np.float64), index=True)
    digest = int(hashes.to_numpy().sum(dtype=np.uint64))
    return _Answer(seconds=taken, peak_mb=peak_mb, rows=len(answer), digest=digest)


def _definitions() -> list[Any]:
    from feast import Entity, FeatureView, Field
    from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
    from feast.types import Float64, Int64, String
    from feast.value_type import ValueType

    account = Entity(name="account", join_keys=["account_id"], value_type=ValueType.STRING)
    views = []
    for number in range(VIEWS):
        schema = [Field(name="account_id", dtype=String)]
        schema += [
            Field(name=feature.name, dtype=Int64 if feature.dtype is DType.INT64 else Float64)
            for feature in _view(number).features
        ]
        source = PostgreSQLSource(
            name=f"rows{number}",
            table=f"features.bench_{number}",
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        )
        views.append(FeatureView(name=f"view{number}", entities=[account], schema=schema, source=source))
    return [account, *views]


def _peak_mb() -> float:
    """The largest size of this process so far; unlike getrusage's not its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) / 1_000


# ---------------------------------------------------------------- both sides


class _Side:
    """A process in which one side answers; ended when it takes too long."""

    def __init__(self, settings: PostgresSettings, folder: Path, name: str) -> None:
        self._settings = settings
        self._folder, self._kind = folder, KINDS[name]
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.answers: list[_Answer] = []

    def ask(self, size: int, limit_s: float) -> _Answer | None:
        """Ask once; None when the limit has passed."""
        waiting = self._pool.submit(_ask, self._settings, self._folder, self._kind, size)
        try:
            return waiting.result(limit_s)
        except TimeoutError:
            _run(self._settings, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = "
                 "'client backend' AND pid <> pg_backend_pid()")  # fmt: skip
            return None

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _historical(settings: PostgresSettings, folder: Path, rows: int, size: int, limit_s: float) -> list[Figure]:
    """Both sides in turn."""
    with closing(_Side(settings, folder, "ours")) as ours, closing(_Side(settings, folder, "feast")) as feast:
        for side in (ours, feast):
            side.ask(1_000, limit_s)  # imports, compiled kernels, caches of the server
        ended = False
        for number in range(ROUNDS):
            note(f"historical features of {size:,} entity rows, round {number + 1}")
            answer = ours.ask(size, limit_s)
            assert answer is not None, f"no answer within {limit_s} s"
            ours.answers.append(answer)
            if ended or (feast.answers and feast.answers[-1].seconds > limit_s / 5):
                continue
            stock = feast.ask(size, limit_s)
            ended = stock is None
            feast.answers += [stock] if stock else []
        same = {(answer.rows, answer.digest) for answer in (*ours.answers, *feast.answers)}
        assert len(same) == 1, "answers differ"
    return list(_compared(ours, feast, rows, size, limit_s))


def _compared(ours: _Side, feast: _Side, rows: int, size: int, limit_s: float) -> Iterator[Figure]:
    def median(side: _Side) -> float:
        return float(np.median([answer.seconds for answer in side.answers]))

    def peak(side: _Side) -> float:
        # Of the first round: those after it also hold what the comparison of answers took.
        return side.answers[0].peak_mb

    asked = f"{size:,} entity rows, {VIEWS} views of {FEATURES} features, {rows:,} rows each"
    told = f"{asked}; Feast's store: median of {len(feast.answers)}" if feast.answers else (
        f"{asked}; Feast's store was ended after {limit_s:.0f} s, which stands for its time"
    )  # fmt: skip
    yield Figure(
        name=f"historical features, {size:,} rows", value=median(ours), unit="s", peer="Feast's PostgreSQL store",
        peer_value=median(feast) if feast.answers else limit_s, goal=GOALS.get(size), goal_on="ratio",
        conditions=f"{told}; ours: median of {len(ours.answers)}",
    )  # fmt: skip
    yield Figure(
        name=f"peak memory, {size:,} rows", value=peak(ours), unit="MB", goal=PEAK_GOAL_MB,
        peer="Feast's PostgreSQL store", peer_value=peak(feast) if feast.answers else None,
        conditions=f"{asked}; the whole process with Feast's imports",
    )  # fmt: skip


def _without_index(
    settings: PostgresSettings, folder: Path, ours_s: float, rows: int, size: int, limit_s: float
) -> Figure:
    """Feast's store on the tables as it makes them itself: rows, statistics, no index."""
    note(f"historical features of {size:,} entity rows, Feast's store without an index")
    for number in range(VIEWS):
        table = f"features.bench_{number}"
        _run(settings, f"CREATE TABLE {table}_bare AS SELECT * FROM {table}; DROP TABLE {table}")
        _run(settings, f"ALTER TABLE {table}_bare RENAME TO bench_{number}; ANALYZE {table}")
    with closing(_Side(settings, folder, "feast")) as feast:
        stock = feast.ask(size, limit_s)
    told = "1 call" if stock else f"ended after {limit_s:.0f} s, which stands for its time"
    return Figure(
        name=f"historical features, {size:,} rows, Feast's without the index", value=ours_s, unit="s",
        peer="Feast's PostgreSQL store", peer_value=stock.seconds if stock else limit_s, goal=GOAL_WITHOUT_INDEX,
        goal_on="ratio", conditions=f"{VIEWS} views of {FEATURES} features, {rows:,} rows each; Feast's store: {told}",
    )  # fmt: skip


def _written(settings: PostgresSettings) -> list[Figure]:
    """Event rows of the widest view of the catalogue, by our COPY and row by row through psycopg's."""
    from bench.features_data import Payments
    from graph_features.catalog import catalog
    from graph_features.drivers.batch import event_rows
    from graph_features.settings import FeatureSettings

    payments = Payments(n_accounts=2_000, n_payments=20_000, days=60, seed=7)
    view = catalog().schema("account_windows")
    edges, period = payments.edges(), {"from_ms": 0, "to_ms": payments.end_ms}
    tables = event_rows(view, edges, settings=FeatureSettings(), **period)  # type: ignore[arg-type]
    table = pa.concat_tables(tables).slice(0, WRITTEN_ROWS)
    with closing(PostgresOfflineStore(settings)) as store:
        store.create_view(view)
        sides: list[Callable[[], Any]] = [
            lambda: store.write(view, table, part="all"),
            lambda: _copy_rows(settings, view, table),
        ]

        def emptied(side: Callable[[], Any]) -> float:
            _run(settings, f'TRUNCATE features."{view.name}"')
            return seconds(side)

        note(f"writing {table.num_rows:,} rows of {view.name}")
        taken = np.median([[emptied(side) for side in sides] for _ in range(3)], axis=0)
    ours, psycopgs = (table.num_rows / taken).tolist()
    return [
        Figure(
            name=f"{view.name} written", value=ours, unit="rows/s", better="higher", peer="psycopg's binary COPY",
            peer_value=psycopgs, conditions=f"{table.num_rows:,} rows, {table.nbytes / 1e6:.0f} MB in Arrow",
        )
    ]  # fmt: skip


def _copy_rows(settings: PostgresSettings, view: ViewSchema, table: pa.Table) -> None:
    """What a user would write: COPY with values as Python objects."""
    names = ", ".join(f'"{name}"' for name in table.column_names)
    with psycopg.connect(**settings.conninfo()) as connection, connection.cursor() as cursor:  # type: ignore[arg-type]
        types = cursor.execute(f'SELECT {names} FROM features."{view.name}" LIMIT 0').description or []
        with cursor.copy(f'COPY features."{view.name}" ({names}) FROM STDIN (FORMAT binary)') as copy:
            copy.set_types([column.type_code for column in types])
            for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
                copy.write_row(row)


def _run(settings: PostgresSettings, statement: str) -> None:
    options: Any = settings.conninfo()
    with psycopg.connect(**options, autocommit=True) as connection:
        connection.execute(statement)


def main() -> None:
    """Run this part alone; figures go to bench/out/offline.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--entities", type=int, nargs="+", default=list(ENTITY_ROWS))
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, help="seconds that one answer of Feast's store may take"
    )
    given = parser.parse_args()
    publish("offline", figures(rows=given.rows, sizes=tuple(given.entities), limit_s=given.limit))


if __name__ == "__main__":
    main()
