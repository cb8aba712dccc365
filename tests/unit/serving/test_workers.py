"""Real worker processes: what they hold in memory, and that they score like this process does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graph_features.errors import StoreUnavailableError
from graph_features.settings import PlatformSettings, Profile, ServingSettings
from graph_features.stores.sqlite import SqliteOnlineStore
from serving.build import PRELOADED, arguments
from serving.inference import InferenceWorker, own_environment
from serving.pool import ProcessPool
from serving.predict import FIRST_ATTEMPT
from serving.scorer import Shard, ShardScorer
from serving.worker import HandlerSpec

FORBIDDEN = ("torch", "torch_geometric", "feast", "mlflow", "numba", "pandas")


@pytest.fixture
def home(tmp_path: Path, tiny: SimpleNamespace) -> Path:
    """A home whose online store knows accounts a and b."""
    store = SqliteOnlineStore(tmp_path / "online.sqlite", project="ringfence")
    for account in ("a", "b"):
        store.write(tiny.ACTIVITY, tiny.row(tiny.ACTIVITY, (account,), tiny.T0 - 1, sent=3, mean=1.5))
    store.close()
    return tmp_path


@pytest.fixture
def pool(home: Path) -> Iterator[ProcessPool]:
    spec = HandlerSpec(
        target="serving.inference:InferenceWorker", args=(PlatformSettings(home=home), own_environment())
    )
    made = ProcessPool(name="inference", size=2, spec=spec, preload=PRELOADED)
    made.wait_ready()
    yield made
    made.close(drain_s=5)


def test_workers_are_lean_and_score_like_this_process(
    pool: ProcessPool, home: Path, model: Any, tiny: SimpleNamespace
) -> None:
    """A worker that has scored holds neither torch, feast, mlflow, numba nor pandas, and its scores are ours."""
    shard = Shard(transactions=tiny.payments_of([("a", "b", tiny.T0), ("b", "new", tiny.T0)]))
    for future in pool.everywhere("load", model.ref, timeout_s=60):
        assert future.result(timeout=90) == tiny.FEATURE_HASH
    theirs = [pool.submit("score", model.ref, shard, timeout_s=60).result(timeout=90) for _ in range(2)]
    store = SqliteOnlineStore(home / "online.sqlite", project="ringfence")
    ours = ShardScorer(store).score(model.ref, shard)
    store.close()
    for result in theirs:
        assert result.score.tolist() == ours.score.tolist()
        assert result.state.tolist() == ours.state.tolist()
    for future in pool.everywhere("loaded_modules", timeout_s=60):
        loaded = {name.partition(".")[0] for name in future.result(timeout=60)}
        assert "onnxruntime" in loaded
        assert not loaded & set(FORBIDDEN)


def test_scores_survive_the_death_of_workers(pool: ProcessPool, model: Any, tiny: SimpleNamespace) -> None:
    """A worker killed while shards are in flight costs a retry, never a shard, and capacity is back by itself."""
    for future in pool.everywhere("load", model.ref, timeout_s=60):
        future.result(timeout=90)
    pool.on_start("load", model.ref)
    shard = Shard(transactions=tiny.payments_of([("a", "b", tiny.T0)] * 50))
    scores = set()
    for kills in range(1, 4):
        futures = [pool.submit("score", model.ref, shard, timeout_s=60) for _ in range(100)]
        os.kill(pool.status().pids[0], signal.SIGKILL)
        scores |= {tuple(future.result(timeout=90).score.tolist()) for future in futures}
        until(lambda: pool.status().alive == 2)
        assert pool.status().restarts == kills
    assert len(scores) == 1


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_silent_store_is_no_hung_worker(monkeypatch: pytest.MonkeyPatch, model: Any, tiny: SimpleNamespace) -> None:
    """Redis that takes connections and says nothing must be named before its worker would count as hung."""
    settings = ServingSettings(score_timeout_ms=8_000)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RINGFENCE_REDIS_PORT", str(silent.getsockname()[1]))
        monkeypatch.setenv("RINGFENCE_REDIS_TIMEOUT_S", "60")
        given = arguments(PlatformSettings(profile=Profile.SERVICES), settings, "inference", {})
        worker = InferenceWorker(*given)
        worker.load(model.ref)
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="Redis"):
            worker.score(model.ref, Shard(transactions=tiny.payments_of([("a", "b", tiny.T0)])))
        # Asked once, for less than a first attempt's time.
        assert given[2] < FIRST_ATTEMPT * 8
        assert time.monotonic() - begun < 2 * given[2]
        worker.close()


def test_what_workers_run_again_imports_nothing_of_the_server() -> None:
    """The module that a server is started by runs in each of its workers too: it must not bring the server along."""
    code = "import serving.main, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"fastapi", "uvicorn", "sqlalchemy", "serving.app", *FORBIDDEN} & set(done.stdout.split())
