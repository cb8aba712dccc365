"""Work on a Ray cluster of several nodes: the same answers as on this machine, also when a node dies."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graph_features.catalog import catalog
from graph_features.contracts import LABEL_SCHEMA, STATUS_SCHEMA, TRANSACTION_SCHEMA
from graph_features.drivers.batch import event_rows, event_rows_by
from graph_features.errors import ModelError
from graph_features.executor import open_executor
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.ledger import open_ledger
from graph_features.jobs.records import ChunkState
from graph_features.jobs.runner import JobRunner
from graph_features.lazy_stores import LazyStores
from graph_features.ray_executor import RayExecutor
from graph_features.settings import ExecutorSettings, FeatureSettings, JobSettings, PlatformSettings
from graph_features.stores.sqlite import SqliteOnlineStore
from serving.ray_pool import RayPool
from serving.scorer import ModelRef, Shard, ShardScorer
from serving.slots import TaskTimeoutError
from serving.worker import HandlerSpec

VIEWS = [view.name for view in catalog().event_views()]


def until(condition: Callable[[], bool], limit_s: float = 90.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def payments(stories: ModuleType, n: int) -> Any:
    random = np.random.default_rng(11)
    made = tuple(
        stories.Payment(
            id=f"t{k:05d}",
            ts_ms=stories.START_MS + int(random.integers(0, stories.SPAN_MS)),
            sender=f"s{random.integers(60)}",
            receiver=f"r{random.integers(60)}",
            amount=int(random.integers(1, 10**6)),
        )
        for k in range(n)
    )
    return stories.History(payments=made)


# ---------------------------------------------------------------- the executor


def test_parts_on_ray_behave_as_in_processes(nodes: Any) -> None:
    """Results in order, failures beside their parts, few parts taken ahead, settings sent along but no secret."""
    os.environ["RINGFENCE_FEATURE_BASE_EXPONENT"] = "3"
    os.environ["RINGFENCE_REDIS_PASSWORD"] = "secret"
    executor = open_executor(2)
    try:
        assert isinstance(executor, RayExecutor)
        results = list(executor.map(os.listdir, ["/proc/self/fdinfo/..", "/absent", "/proc"]))
        assert [type(result.error) for result in results] == [type(None), FileNotFoundError, type(None)]
        taken: list[int] = []

        def endless() -> Iterator[int]:
            while True:
                taken.append(len(taken))
                yield -len(taken)

        endlessly = executor.map(abs, endless())
        assert [next(endlessly).get() for _ in range(3)] == [1, 2, 3]
        endlessly.close()  # type: ignore[attr-defined]
        assert len(taken) <= 3 + 2 * executor.workers
        code = "__import__('os').environ.get('{}')"
        names = ("RINGFENCE_FEATURE_BASE_EXPONENT", "RINGFENCE_REDIS_PASSWORD")
        told = [result.get() for result in executor.map(eval, [code.format(name) for name in names])]
        assert told == ["3", None]
    finally:
        executor.close()
        del os.environ["RINGFENCE_FEATURE_BASE_EXPONENT"], os.environ["RINGFENCE_REDIS_PASSWORD"]


def test_a_part_has_its_memory_and_no_more(nodes: Any) -> None:
    """A part that wants more than its memory fails alone with MemoryError; one that kills its worker is given up."""
    settings = ExecutorSettings(
        executor="ray", ray_address=nodes.cluster.address, ray_task_memory_mb=200, ray_task_cpus=0.5
    )
    executor = RayExecutor(1, settings=settings)
    results = list(executor.map(bytearray, [100 << 20, 300 << 20, 10]))
    assert [type(result.error) for result in results] == [type(None), MemoryError, type(None)]
    (killed, fine) = list(executor.map(eval, ["__import__('os')._exit(7)", "3"]))
    assert killed.error is not None
    assert fine.get() == 3
    assert executor.retried == 1


def test_rows_are_those_of_this_process(nodes: Any, stories: ModuleType, tmp_path: Path) -> None:
    """Event rows in parts on the cluster are bit for bit those of the process pool and of one process."""
    edges, view = payments(stories, 1_500).edges(), catalog().schema("account_neighbours")
    period: dict[str, Any] = {"from_ms": 0, "to_ms": 2**60, "settings": FeatureSettings()}
    executor = open_executor(2)
    tables = list(event_rows_by(executor, view, edges, cache=tmp_path, part_rows=800, **period))
    executor.close()
    assert len(tables) > 2
    assert pa.concat_tables(tables).equals(pa.concat_tables(event_rows(view, edges, **period)))


# ---------------------------------------------------------------- backfills


def open_stores(home: Path, history: Any) -> LazyStores:
    stores = LazyStores(PlatformSettings(home=home))
    records = history.records()
    stores.records.create_schema()
    stores.records.write_transactions(records.transactions.select(TRANSACTION_SCHEMA.names))
    stores.records.write_statuses(records.statuses.select(STATUS_SCHEMA.names))
    stores.records.write_labels(records.labels.select(LABEL_SCHEMA.names))
    return stores


def offline_rows(home: Path, name: str) -> pa.Table:
    """Every row that counts, by key and time."""
    folder, view = home / "offline" / name, catalog().schema(name)
    live = [part["file"] for part in json.loads((folder / "parts.json").read_text())["parts"]]
    table = pa.concat_tables([pq.read_table(folder / file, columns=view.arrow_schema.names) for file in live])
    return table.sort_by([(column, "ascending") for column in (*view.keys, "event_timestamp")]).combine_chunks()


def test_a_node_dies_amid_a_backfill(
    nodes: Any, stories: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Chunks that a killed node had in hand are done once more by others; no row is lost, doubled or different."""
    history = payments(stories, 3_000)
    ledgers = {}
    for home, workers, partitions in ((tmp_path / "here", 1, 1), (tmp_path / "ray", 3, 8)):
        stores, platform = open_stores(home, history), PlatformSettings(home=home)
        ledger = open_ledger(platform)
        runner = JobRunner(ledger=ledger, handlers=feature_kinds(stores), settings=JobSettings(heartbeat_s=0.5))
        job_id = runner.submit("backfill", {"views": VIEWS, "workers": workers, "partitions": partitions})
        kill = Kill(nodes, ledger, job_id) if workers > 1 else None
        with caplog.at_level(logging.WARNING):
            job = runner.run(job_id, progress=kill)
        assert job.error is None, job.error
        ledgers[home] = ledger.chunks.list(job_id)
        runner.close()
        ledger.close()
        stores.close()
    assert kill is not None
    assert kill.killed
    assert "died" in caplog.text
    chunks = ledgers[tmp_path / "ray"]
    assert {chunk.state for chunk in chunks} == {ChunkState.DONE}
    assert len(chunks) == 8 * len(VIEWS)
    assert max(chunk.attempts for chunk in chunks) <= 2
    for view in VIEWS:
        assert offline_rows(tmp_path / "ray", view).equals(offline_rows(tmp_path / "here", view)), view
    assert online_rows(tmp_path / "ray", history) == online_rows(tmp_path / "here", history)


class Kill:
    """Holds the runner back until both helpers have done chunks, and one of them dies with its node."""

    def __init__(self, nodes: Any, ledger: Any, job_id: Any) -> None:
        self.nodes, self.ledger, self.job_id = nodes, ledger, job_id
        self.killed = False

    def __call__(self, done: int, total: int | None) -> None:
        if self.killed or not done:
            return
        until(lambda: len(self.helpers()) == 2)
        self.nodes.kill()
        self.killed = True

    def helpers(self) -> set[str]:
        found = self.ledger.chunks.list(self.job_id)
        return {chunk.runner for chunk in found if chunk.runner and "helper" in chunk.runner}


def online_rows(home: Path, history: Any) -> list[Any]:
    store = SqliteOnlineStore(home / "online.sqlite", project="ringfence")
    keys = {"account": [(one,) for one in sorted(history.accounts())], "pair": sorted(history.pairs())}
    found = store.read([(view, keys[view.entity]) for view in catalog().event_views()])
    store.close()
    assert all(value is not None for values in found for value in values)
    return found


def test_what_is_pending_is_refreshed_on_the_cluster(nodes: Any, stories: ModuleType, tmp_path: Path) -> None:
    """A materialize job sends its keys to the cluster, where tasks open the stores themselves and clear the marks."""
    history = payments(stories, 300)
    home = tmp_path / "home"
    stores, platform = open_stores(home, history), PlatformSettings(home=home)
    keys = [*((one,) for one in history.accounts()), *history.pairs()]
    stores.online.mark_pending(keys)
    runner = JobRunner(ledger=open_ledger(platform), handlers=feature_kinds(stores))
    job = runner.run(runner.submit("materialize", {"workers": 2}))
    assert job.error is None, job.error
    assert stores.online.all_pending() == {}
    online_rows(home, history)
    runner.close()
    stores.close()


# ---------------------------------------------------------------- the pool


def ask(pool: RayPool, method: str, *args: Any, timeout_s: float = 60.0) -> Any:
    return pool.submit(method, *args, timeout_s=timeout_s).result(timeout=90)


def test_actors_are_supervised_as_processes_are(nodes: Any) -> None:
    """Errors come back as they were, a hung actor is ended at the deadline, and one that dies costs one retry."""
    spec = HandlerSpec(target="importlib:import_module", args=("time",))
    pool = RayPool(name="test", size=1, spec=spec, settings=nodes.settings)
    try:
        pool.wait_ready(60)
        (first,) = pool.status().pids
        assert ask(pool, "sleep", 0.01) is None
        with pytest.raises(TaskTimeoutError):
            ask(pool, "sleep", 60, timeout_s=0.5)
        until(lambda: pool.status().pids not in ((), (first,)))
        (second,) = pool.status().pids
        os.kill(second, 9)
        until(lambda: pool.status().pids not in ((), (second,)))
        (third,) = pool.status().pids
        future = pool.submit("sleep", 2.0, timeout_s=60)
        until(lambda: pool.status().busy == 1)
        os.kill(third, 9)
        assert future.result(timeout=90) is None
        assert (pool.status().restarts, pool.status().retries) == (3, 1)
    finally:
        pool.close()


def test_a_node_dies_amid_a_stream_of_predictions(nodes: Any, small_world: ModuleType, tmp_path: Path) -> None:
    """Every shard gets the score of this process, in time; those on the dead node are scored once more elsewhere."""
    store = SqliteOnlineStore(tmp_path / "online.sqlite", project="ringfence")
    for account in ("a", "b"):
        row = small_world.row(small_world.ACTIVITY, (account,), small_world.T0 - 1, sent=3, mean=1.5)
        store.write(small_world.ACTIVITY, row)
    models = [
        ModelRef(
            name="ringfence",
            version=str(n),
            alias="champion",
            path=str(small_world.write_model(tmp_path / str(n), scale=n)),
        )
        for n in (1, 2)
    ]
    shard = Shard(transactions=small_world.payments_of([("a", "b", small_world.T0)] * 50))
    wanted = [ShardScorer(store).score(model, shard).score.tolist() for model in models]
    assert wanted[0] != wanted[1]
    spec = HandlerSpec(target="serving.inference:InferenceWorker", args=(PlatformSettings(home=tmp_path), {}))
    pool = RayPool(name="inference", size=2, spec=spec, settings=nodes.settings)
    try:
        pool.wait_ready(60)
        for model, scores in zip(models, wanted, strict=True):  # a hot swap: in every worker before the first request
            for future in pool.everywhere("load", model, timeout_s=60):
                assert future.result(timeout=90) == small_world.FEATURE_HASH
            pool.on_start("load", model)
            assert ask(pool, "score", model, shard).score.tolist() == scores
        gone = replace(models[0], path=str(tmp_path / "gone"))  # costs the call, and no worker's thread
        for future in pool.everywhere("load", gone, timeout_s=60):
            with pytest.raises(ModelError, match="promote it again"):
                future.result(timeout=90)
        stream = [pool.submit("score", models[1], shard, timeout_s=60) for _ in range(400)]
        until(lambda: sum(future.done() for future in stream) > 20)
        nodes.kill()
        assert all(future.result(timeout=90).score.tolist() == wanted[1] for future in stream)
        assert pool.status().retries <= 1
        until(lambda: pool.status().alive == 1)
        nodes.grow(2)
        until(lambda: pool.status().alive == 2)
        for model in models:  # the new actor is sent what it was never told to load, a challenger say
            Path(model.path).rename(tmp_path / f"away-{model.version}")
        for model, scores in zip(models, wanted, strict=True):
            for future in pool.everywhere("score", model, shard, timeout_s=60):
                assert future.result(timeout=90).score.tolist() == scores
    finally:
        pool.close(drain_s=1)
        store.close()
