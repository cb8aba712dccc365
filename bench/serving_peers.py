"""Starts what serving is compared with, and makes the requests that each of them takes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.http_load import post
from bench.report import OUT
from bench.serving_world import ROOT, Process, World, free_port, started
from bench.timing import note
from graph_features.schema import Cadence, DType, ViewSchema
from graph_features.tuples import InputTuples

LOCK = ROOT / "requirements" / "peers.lock"
PEERS = Path(__file__).parent / "peers"
FEATURES = 60
PER_VIEW = 20


# ---------------------------------------------------------------- model servers


def peers_python() -> Path:
    """Python of the peers' own environment, made from the lock on first use."""
    folder = Path(os.environ.get("BENCH_PEERS_VENV", OUT / "peers"))
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists() and "BENCH_PEERS_VENV" not in os.environ:
        note(f"installing {LOCK.name} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", str(LOCK)]
        subprocess.run(command, check=True)
        (folder / ".installed").touch()
    return python


@contextmanager
def model_server(world: World, name: str, model: Path, workers: int) -> Iterator[Process]:
    """LitServe (`litserve`) or Ray Serve (`ray`) with the model and so many workers, ready."""
    port = free_port()
    command = [str(peers_python()), str(PEERS / f"{name}_app.py"), str(port), str(workers)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RINGFENCE_", "PYTHON"))}
    environment = {**kept, "BENCH_MODEL": str(model / "model.onnx"), "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"}
    log = world.home / f"{name}.log"
    with started(command, port=port, environment=environment, log=log, cwd=PEERS) as process:
        process.await_ready("/health" if name == "litserve" else "/")
        yield process


def mlflow_environment(world: World) -> dict[str, str]:
    """For `mlflow models serve`, which looks for uvicorn on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{world.environment['PATH']}"
    return {**world.environment, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}


@contextmanager
def mlflow_server(world: World, version: str, workers: int) -> Iterator[Process]:
    """`mlflow models serve` of a registered version, in this environment."""
    port = free_port()
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    command = [mlflow, "models", "serve", "-m", f"models:/ringfence/{version}", "-p", str(port), "-h", "127.0.0.1"]
    command += ["--env-manager", "local", "-w", str(workers)]
    log = world.home / "mlflow-serve.log"
    with started(command, port=port, environment=mlflow_environment(world), log=log) as process:
        process.await_ready("/ping")
        yield process


def lists(tuples: InputTuples, names: Sequence[str]) -> dict[str, Any]:
    """Inputs as JSON takes them."""
    return {name: getattr(tuples, name).tolist() for name in names}


def json_request(tuples: InputTuples, names: Sequence[str]) -> bytes:
    """Features in the request as JSON lists; null as NaN, which Python's own parser takes."""
    return post("/predict", json.dumps(lists(tuples, names)).encode())


def packed_request(tuples: InputTuples, names: Sequence[str]) -> bytes:
    """Features in the request as their bytes in base64: the quickest that both servers take."""
    arrays = {name: np.ascontiguousarray(getattr(tuples, name)) for name in names}
    data = base64.b64encode(b"".join(array.tobytes() for array in arrays.values())).decode()
    body = {"shapes": {name: array.shape for name, array in arrays.items()}, "packed": data}
    return post("/predict", json.dumps(body).encode())


# ---------------------------------------------------------------- Feast


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Sixty scalar features of account views: (view, features) in order."""

    views: tuple[tuple[ViewSchema, tuple[str, ...]], ...]

    @property
    def refs(self) -> list[str]:
        return [f"{view.name}:{name}" for view, names in self.views for name in names]


def choose(schemas: Sequence[ViewSchema]) -> Chosen:
    """The first PER_VIEW numbers of each account view until there are FEATURES."""
    left, views = FEATURES, []
    for view in schemas:
        numbers = [one.name for one in view.features if one.dtype in (DType.INT64, DType.FLOAT64)]
        taken = tuple(numbers[: min(PER_VIEW, left)])
        if view.entity == "account" and taken and view.cadence in Cadence:
            views.append((view, taken))
            left -= len(taken)
    return Chosen(views=tuple(views))


def feast_repo(world: World, chosen: Chosen, folder: Path) -> Any:
    """A repo of the same features on Feast's own Redis store, on the same server in a database of its own."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource
    from feast.types import Float64, String
    from feast.value_type import ValueType

    redis = world.services.redis
    folder.mkdir(parents=True, exist_ok=True)
    place = f"{redis.host}:{redis.port},password={redis.password.get_secret_value()},db=1"
    (folder / "feature_store.yaml").write_text(
        f"project: stock\nprovider: local\nregistry:\n  path: {folder / 'registry.db'}\n  cache_ttl_seconds: 3600\n"
        f"online_store:\n  type: redis\n  connection_string: {place}\noffline_store:\n  type: duckdb\n"
        "entity_key_serialization_version: 3\n",
        encoding="utf-8",
    )
    store = FeatureStore(repo_path=str(folder))
    account = Entity(name="account", join_keys=["account_id"], value_type=ValueType.STRING)
    views = []
    for view, names in chosen.views:
        fields = [Field(name=name, dtype=Float64) for name in names]
        source = FileSource(name=f"rows_{view.name}", path=str(folder / "none"), timestamp_field="event_timestamp")
        schema = [*fields, Field(name="account_id", dtype=String)]
        views.append(FeatureView(name=view.name, entities=[account], schema=schema, source=source, ttl=timedelta(0)))
    store.apply([account, *views])
    return store


def feast_fill(store: Any, chosen: Chosen, ids: Sequence[str], values: dict[str, list[float | None]]) -> None:
    """Write these accounts' values, by reference, into the stock store."""
    now = pd.Timestamp.now(tz="UTC")
    for view, names in chosen.views:
        columns = {name: np.array(values[f"{view.name}:{name}"], np.float64) for name in names}
        frame = pd.DataFrame({"account_id": list(ids), "event_timestamp": now, **columns})
        store.write_to_online_store(view.name, frame)


@contextmanager
def feast_server(world: World, folder: Path) -> Iterator[Process]:
    """`feast serve` with one worker that is never recycled, no access log, and a registry that is not read again."""
    port = free_port()
    feast = str(Path(sys.executable).with_name("feast"))
    command = [feast, "-c", str(folder), "serve", "-h", "127.0.0.1", "-p", str(port), "--no-access-log"]
    command += ["--workers", "1", "--max-requests", "0", "--registry_ttl_sec", "3600"]
    environment = {**world.environment}
    environment.pop("FEAST_FS_YAML_FILE_PATH", None)
    with started(command, port=port, environment=environment, log=world.home / "feast.log", cwd=folder) as process:
        process.await_ready("/health")
        yield process
