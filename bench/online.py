"""The online stores against Feast's own: reading, materializing, memory. `python -m bench.stores` runs them.

Both sides run in one process (materializing: each in one of its own) over one Redis, on the same rows, in turn.
Answers are compared before times are.
"""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import redis
from feast import FeatureStore

from bench.homes import guarded_home
from bench.online_repo import (
    FEATURES,
    PERIOD,
    SERVICE,
    VIEWS,
    Place,
    Side,
    open_repo,
    redis_store,
    sqlite_store,
    views,
)
from bench.report import Figure
from bench.timing import alternately, note, seconds
from feature_repo.stores.export import service_spec
from graph_features.stores.reader import read_service
from infra.local import servers
from infra.local.environment import variables

ACCOUNTS = 5_000
ROUNDS = {1: 41, 100: 21, 1_000: 15}
COLUMNAR_GOAL, MGET_GOAL, FEAST_GOAL = 50, 0.25, 2
"""At 1000 entities: the columnar read against Feast, the same against a bare MGET, ours through Feast against Feast."""
MATERIALIZED = 200_000
MATERIALIZE_GOAL, PEAK_GOAL_MB = 10, 500
SQLITE_ACCOUNTS = 1_000
MB = 1_000_000
SIDES: tuple[Side, Side] = ("feast", "ours")


def figures(*, rows: int = MATERIALIZED) -> list[Figure]:
    """Start Redis and measure; so many rows are materialized."""
    warnings.simplefilter("ignore")
    with guarded_home() as home, tempfile.TemporaryDirectory(prefix="ringfence-bench-") as folder:
        place = Place(folder=Path(folder), redis=servers.up(home, only=["redis"], durable=False).redis)
        with redirect_stdout(sys.stderr):
            return [*reading(place), *materializing(place, rows), *sqlite_size(place)]


# ---------------------------------------------------------------- reading


def reading(place: Place) -> list[Figure]:
    """60 features of 4 views for 1, 100 and 1000 accounts, four ways; and what the rows take in Redis."""
    stores: dict[Side, FeatureStore] = {}
    taken: dict[Side, float] = {}
    for side in SIDES:
        note(f"reading: {VIEWS} views of {ACCOUNTS:,} accounts into {side}'s store")
        stores[side] = open_repo(place, side, redis_store(place, side))
        stores[side].apply(views(place, ACCOUNTS))
        before = memory(place)
        stores[side].materialize(*PERIOD)
        taken[side] = (memory(place) - before) / ACCOUNTS
    figures = [figure for count in ROUNDS for figure in read_figures(place, stores, count)]
    for store in stores.values():
        store.teardown()  # type: ignore[no-untyped-call]
    return [
        *figures,
        Figure(
            name="Redis memory per account",
            value=taken["ours"],
            unit="bytes",
            peer="feast",
            peer_value=taken["feast"],
            conditions=f"{VIEWS} views of {FEATURES} numbers, {ACCOUNTS} accounts; a key per view, not a hash for all",
        ),
    ]


def read_figures(place: Place, stores: dict[Side, FeatureStore], count: int) -> list[Figure]:
    """The four ways for so many accounts."""
    ids = [f"account-{at * (ACCOUNTS // count):07}" for at in range(count)]
    rows = [{"account_id": one} for one in ids]
    refs = [f"view_{view}:f{at}" for view in range(VIEWS) for at in range(FEATURES)]
    ways: dict[Side, Callable[[], Any]] = {
        side: lambda store=store: store.get_online_features(refs, rows, full_feature_names=True)  # type: ignore[misc]
        for side, store in stores.items()
    }
    ours = stores["ours"]
    plugin: Any = ours._get_provider().online_store
    packed, spec = plugin.packed(ours.config), service_spec(ours, SERVICE)
    columnar = lambda: read_service(packed, spec, {"account_id": ids})  # noqa: E731 - one more way
    client = redis.Redis.from_url(url(place))
    names = [name for name in client.scan_iter(count=10_000) if any(name.endswith(one.encode()) for one in ids[:1])]
    names = [name[: -len(ids[0])] + one.encode() for name in names for one in ids]
    bare = lambda: client.mget(names)  # noqa: E731
    check(ways, columnar, bare, count)
    note(f"reading {count} accounts: feast, ours through Feast, columnar, bare MGET")
    gc.collect()
    gc.freeze()
    feast_s, ours_s, columnar_s, bare_s = alternately(ROUNDS[count], ways["feast"], ways["ours"], columnar, bare)
    at_goal = count == max(ROUNDS)
    shown = f"{VIEWS * FEATURES} features of {VIEWS} views, {count} accounts"
    figures = [
        read_figure(f"get_online_features, {count}", ours_s, "feast", feast_s, FEAST_GOAL if at_goal else None, shown),
        read_figure(f"columnar read, {count}", columnar_s, "feast", feast_s, COLUMNAR_GOAL if at_goal else None, shown),
        read_figure(f"columnar read, {count}", columnar_s, "MGET", bare_s, MGET_GOAL if at_goal else None, shown),
    ]
    client.close()
    return figures


def read_figure(name: str, own_s: float, peer: str, peer_s: float, goal: float | None, shown: str) -> Figure:
    """Milliseconds of one read."""
    return Figure(
        name=name,
        value=own_s * 1_000,
        unit="ms",
        peer=peer,
        peer_value=peer_s * 1_000,
        goal=goal,
        goal_on="ratio",
        conditions=f"{shown}; median of {ROUNDS[int(name.rpartition(' ')[2])]} in turn",
    )


def check(
    ways: dict[Side, Callable[[], Any]], columnar: Callable[[], Any], bare: Callable[[], Any], count: int
) -> None:
    """All four see the same rows, or the figures mean nothing; raise AssertionError."""
    feast, ours = (ways[side]().to_dict(include_event_timestamps=True) for side in SIDES)
    matrix = columnar()
    assert feast == ours, "Feast's store and ours answer differently"
    for at, name in enumerate(matrix.names):
        expected = np.array([np.nan if one is None else one for one in feast[name]], np.float64).astype(np.float32)
        np.testing.assert_array_equal(matrix.values[:, at], expected, err_msg=name)
    values = bare()
    assert len(values) == count * VIEWS, f"MGET: expected {count * VIEWS} values, got {len(values)}"
    assert all(value is not None for value in values), "MGET does not find the rows"


def url(place: Place, database: int | None = None) -> str:
    """The database that our side uses."""
    server = place.redis
    number = place.database("ours") if database is None else database
    return f"redis://:{server.password.get_secret_value()}@{server.host}:{server.port}/{number}"


def memory(place: Place) -> int:
    """Bytes that Redis uses for all it holds."""
    with redis.Redis.from_url(url(place)) as client:
        used: Any = client.info("memory")
    return int(used["used_memory_dataset"])


# ---------------------------------------------------------------- materializing


def materializing(place: Place, rows: int) -> list[Figure]:
    """`materialize` of one view, each time in a new process: once Feast's own, before and after ours."""
    done: dict[Side, list[dict[str, float]]] = {side: [] for side in SIDES}
    views(place, rows, count=1)
    order: tuple[Side, ...] = ("ours", "feast", "ours")
    for side in order:
        note(f"materializing {rows:,} rows with {side}")
        done[side].append(materialize(place, side, rows))
    took = {side: float(np.median([one["seconds"] for one in runs])) for side, runs in done.items()}
    peak, grown = ({side: max(one[kind] for one in done[side]) / MB for side in SIDES} for kind in ("peak", "grown"))
    shown = f"{rows:,} rows of {FEATURES} numbers from Parquet, DuckDB offline store; a process each, without PyTorch"
    return [
        Figure(
            name=f"materialize {rows:,} rows",
            value=rows / took["ours"],
            unit="rows/s",
            better="higher",
            peer="feast",
            peer_value=rows / took["feast"],
            goal=MATERIALIZE_GOAL,
            goal_on="ratio",
            conditions=f"{shown}; ours twice, Feast's once between",
        ),
        Figure(
            name=f"materialize {rows:,} rows: peak memory of the process",
            value=peak["ours"],
            unit="MB",
            peer="feast",
            peer_value=peak["feast"],
            goal=PEAK_GOAL_MB,
            conditions=f"{shown}; all of it, Feast's import included",
        ),
        Figure(
            name=f"materialize {rows:,} rows: memory added by it",
            value=grown["ours"],
            unit="MB",
            peer="feast",
            peer_value=grown["feast"],
            conditions=f"{shown}; the peak less what the process held before",
        ),
    ]


def materialize(place: Place, side: Side, rows: int) -> dict[str, float]:
    """One run in a process of its own, into an empty database."""
    with redis.Redis.from_url(url(place, place.database(side))) as client:
        client.flushdb()
    command = [sys.executable, "-m", "bench.online_materialize", side, str(place.folder), str(rows)]
    environment = {**os.environ, **variables(place.redis)}
    printed = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    done: dict[str, float] = json.loads(printed)
    return done


# ---------------------------------------------------------------- SQLite


def sqlite_size(place: Place) -> list[Figure]:
    """Bytes in the file per value, and the time to write it."""
    taken: dict[Side, float] = {}
    took: dict[Side, float] = {}
    for side in SIDES:
        note(f"SQLite: {VIEWS} views of {SQLITE_ACCOUNTS:,} accounts with {side}")
        store = open_repo(place, side, sqlite_store(place, side), name="file")
        store.apply(views(place, SQLITE_ACCOUNTS))
        took[side] = seconds(lambda store=store: store.materialize(*PERIOD))  # type: ignore[misc]
        with closing(sqlite3.connect(place.folder / f"{side}.sqlite")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        taken[side] = sum(one.stat().st_size for one in place.folder.glob(f"{side}.sqlite*"))
    values = SQLITE_ACCOUNTS * VIEWS * FEATURES
    return [
        Figure(
            name="SQLite per value",
            value=taken["ours"] / values,
            unit="bytes",
            peer="feast",
            peer_value=taken["feast"] / values,
            conditions=f"{SQLITE_ACCOUNTS} accounts, {VIEWS} views of {FEATURES}; the file",
        ),
        Figure(
            name="SQLite materialize",
            value=took["ours"],
            unit="s",
            peer="feast",
            peer_value=took["feast"],
            conditions=f"{SQLITE_ACCOUNTS} accounts, {VIEWS} views; once",
        ),
    ]
