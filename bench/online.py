"""What the online stores cost beside Feast's own, on one Redis in one run.

    python -m bench.online [--entities 1000] [--rows 200000] [--rounds 7]

Starts a Redis of its own and removes it at the end.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float64, Int64, String
from feast.value_type import ValueType

from bench.homes import guarded_home
from bench.report import Figure, publish
from bench.timing import alternately, note, seconds
from feature_repo.stores.general import key_columns
from feature_repo.stores.packing import GeneralPacker, packing
from graph_features.settings import RedisSettings
from graph_features.stores.general import GeneralBlock
from graph_features.stores.redis import RedisOnlineStore
from infra.local import servers

VIEWS = 4
FEATURES_PER_VIEW = 15
END = datetime(2024, 3, 1, tzinfo=UTC)
START = END - timedelta(days=2)
ACCOUNT = Entity(name="account", join_keys=["account_id"], value_type=ValueType.STRING)
OURS = "feature_repo.stores.online.RedisPackedOnlineStore"
OURS_FILE = "feature_repo.stores.online.SqlitePackedOnlineStore"
ENGINE = "feature_repo.stores.engine.ColumnarComputeEngine"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """`entities` are asked for at once, of `rows` that are there."""

    entities: int
    rows: int
    rounds: int

    @property
    def conditions(self) -> str:
        return f"{self.entities} entities of {self.rows}, {VIEWS} views of {FEATURES_PER_VIEW} features"


def views(folder: Path) -> list[FeatureView]:
    """Two thirds float64, one third int64."""
    schema = [Field(name="account_id", dtype=String)]
    schema += [Field(name=f"f{i}", dtype=Int64 if i % 3 == 0 else Float64) for i in range(FEATURES_PER_VIEW)]
    return [
        FeatureView(
            name=f"view{number}",
            entities=[ACCOUNT],
            schema=schema,
            source=FileSource(name=f"s{number}", path=str(folder / f"{number}.parquet"), timestamp_field="at"),
        )
        for number in range(VIEWS)
    ]


def write_sources(folder: Path, rows: int) -> None:
    """One row an entity and view; a tenth of the floats are null."""
    rng = np.random.default_rng(7)
    for number in range(VIEWS):
        columns = {
            "account_id": pa.array([f"acc-{i:07d}" for i in range(rows)]),
            "at": pa.array([END - timedelta(days=1)] * rows, pa.timestamp("us", "UTC")),
        }
        for i in range(FEATURES_PER_VIEW):
            if i % 3 == 0:
                columns[f"f{i}"] = pa.array(rng.integers(0, 10**6, rows))
            else:
                columns[f"f{i}"] = pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.1)
        pq.write_table(pa.table(columns), folder / f"{number}.parquet")


class Side:
    """Feast over one online store, its views registered."""

    def __init__(self, folder: Path, name: str, online: dict[str, Any], engine: str) -> None:
        self.store = FeatureStore(
            config=RepoConfig(
                project=name,
                registry=str(folder / f"{name}.db"),
                provider="local",
                online_store=online,
                batch_engine={"type": engine},
                entity_key_serialization_version=3,
            )
        )
        self.views = views(folder)
        self.store.apply([ACCOUNT, *self.views])
        self.refs = [f"{view.name}:{field.name}" for view in self.views for field in view.features]

    def materialize(self, names: list[str]) -> None:
        self.store.materialize(START, END, feature_views=names)

    def read(self, keys: list[str]) -> Any:
        """Feast's own call, its answer left as protobuf."""
        return self.store.get_online_features(self.refs, {"account_id": keys}, full_feature_names=True).proto


class Columnar:
    """Ids to float32 matrices, without Feast's call."""

    def __init__(self, side: Side, settings: RedisSettings) -> None:
        self.store = RedisOnlineStore(settings, project=side.store.project)
        self._packers = [packing(view, side.store.config) for view in side.views]

    @cached_property
    def _names(self) -> list[str]:
        return [f"f{i}" for i in range(FEATURES_PER_VIEW)]

    def keys(self, ids: list[str]) -> list[bytes]:
        table = pa.table({"account_id": ids})
        found: list[bytes] = []
        made: dict[tuple[tuple[str, str], ...], list[bytes]] = {}
        for packer in self._packers:
            assert isinstance(packer, GeneralPacker)
            join_keys, prefix = packer.view.keys, packer.prefix
            if join_keys not in made:
                made[join_keys] = key_columns(packer.view, table)
            found += [prefix + key for key in made[join_keys]]
        return found

    def read(self, ids: list[str]) -> npt.NDArray[np.float32]:
        values, n = self.store.get(self.keys(ids)), len(ids)
        blocks = [packer.block(values[at * n : at * n + n]) for at, packer in enumerate(self._packers)]
        return np.hstack([block.matrix(self._names) for block in blocks if isinstance(block, GeneralBlock)])


def check(side: Side, columnar: Columnar, ids: list[str]) -> None:
    """The matrix holds what Feast answers."""
    answer = side.store.get_online_features(side.refs, {"account_id": ids}, full_feature_names=True).to_dict()
    expected = np.array([answer[ref.replace(":", "__")] for ref in side.refs], np.float64).T.astype(np.float32)
    np.testing.assert_array_equal(columnar.read(ids), expected)


def reading(scale: Scale, stock: Side, ours: Side, settings: RedisSettings) -> list[Figure]:
    """Every way to read the same entities."""
    picked = np.random.default_rng(3).choice(scale.rows, scale.entities, replace=False)
    ids = [f"acc-{i:07d}" for i in picked.tolist()]
    columnar = Columnar(ours, settings)
    with closing(columnar.store):
        check(ours, columnar, ids)
        check(stock, columnar, ids)
        keys = columnar.keys(ids)
        slow, fast, matrix, bare = alternately(
            scale.rounds,
            lambda: stock.read(ids),
            lambda: ours.read(ids),
            lambda: columnar.read(ids),
            lambda: columnar.store.get(keys),
        )
    return [
        Figure(
            name="get_online_features", value=fast * 1e3, peer="Feast's Redis store", peer_value=slow * 1e3,
            goal=2, goal_on="ratio", unit="ms", conditions=scale.conditions,
        ),
        Figure(
            name="columnar read", value=matrix * 1e3, peer="Feast's Redis store", peer_value=slow * 1e3,
            goal=50, goal_on="ratio", unit="ms", conditions=scale.conditions,
        ),
        Figure(
            name="columnar read", value=matrix * 1e3, peer="bare MGET", peer_value=bare * 1e3,
            goal=0.25, goal_on="ratio", unit="ms", conditions=scale.conditions,
        ),
    ]  # fmt: skip


@contextmanager
def memory_used(client: Any, found: list[float]) -> Iterator[None]:
    """Append how many bytes more Redis holds afterwards."""
    before = client.info("memory")["used_memory"]
    yield
    found.append(client.info("memory")["used_memory"] - before)


def filling(scale: Scale, stock: Side, ours: Side, client: Any) -> list[Figure]:
    """Materialize every view; the first is timed."""
    used: list[float] = []
    taken: list[float] = []
    for side in (ours, stock):
        note(f"materializing {side.store.project}")
        with memory_used(client, used):
            taken.append(seconds(lambda side=side: side.materialize(["view0"])))  # type: ignore[misc]
            if side is ours:
                # Before the other side runs: the largest size of this process only grows.
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            side.materialize([view.name for view in side.views[1:]])
    rows = f"{scale.rows} rows of {FEATURES_PER_VIEW} features"
    return [
        Figure(
            name="materialize", value=taken[0], unit="s", peer="Feast's Redis store", peer_value=taken[1],
            goal=10, goal_on="ratio", conditions=rows,
        ),
        Figure(name="materialize, peak memory of the process", value=peak, unit="MB", goal=500, conditions=rows),
        Figure(
            name="Redis memory per account", value=used[0] / scale.rows, unit="bytes", peer="Feast's Redis store",
            peer_value=used[1] / scale.rows, conditions=scale.conditions,
        ),
    ]  # fmt: skip


def files(scale: Scale, folder: Path) -> list[Figure]:
    """Bytes of a SQLite file per value, over one view."""
    sizes = []
    for name, kind, engine in (("packed", OURS_FILE, ENGINE), ("plain", "sqlite", "local")):
        path = folder / f"{name}.sqlite"
        side = Side(folder, name, {"type": kind, "path": str(path)}, engine)
        note(f"materializing into SQLite: {name}")
        side.materialize(["view0"])
        held = sum(part.stat().st_size for part in folder.glob(f"{name}.sqlite*"))
        sizes.append(held / (scale.rows * FEATURES_PER_VIEW))
    peer = "Feast's SQLite store"
    return [Figure(name="SQLite bytes per value", value=sizes[0], unit="bytes", peer=peer, peer_value=sizes[1])]


def main() -> None:
    """Run it all; figures go to bench/out/online.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    scale = Scale(**vars(parser.parse_args()))
    with guarded_home() as home, tempfile.TemporaryDirectory() as name:
        import redis

        folder = Path(name)
        settings = servers.up(home, only=["redis"], durable=False).redis
        password = settings.password.get_secret_value()
        address = f"{settings.host}:{settings.port},password={password}"
        write_sources(folder, scale.rows)
        ours = Side(folder, "ours", {"type": OURS, "connection_string": address}, ENGINE)
        stock = Side(folder, "stock", {"type": "redis", "connection_string": address}, "local")
        with redis.Redis(host=settings.host, port=settings.port, password=password) as client:
            figures = filling(scale, stock, ours, client)
        figures = [*reading(scale, stock, ours, settings), *figures, *files(scale, folder)]
    publish("online", figures)


if __name__ == "__main__":
    main()
