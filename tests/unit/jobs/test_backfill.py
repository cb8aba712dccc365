"""Backfills: whatever stops one, resuming does exactly the rest."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graph_features.catalog import catalog
from graph_features.jobs.backfill import plan_backfill, run_backfill
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.parameters import BackfillParameters
from graph_features.jobs.records import ChunkKey, ChunkState, JobState
from graph_features.jobs.runner import JobContext, JobKind, JobRunner
from graph_features.schema import Cadence
from graph_features.settings import FeatureSettings, JobSettings
from graph_features.stores.sqlite import SqliteOnlineStore

VIEWS = ["account_topology", "account_proximity"]


@pytest.fixture
def backfill(ledger: Any, make_stores: Any, period: Any) -> Any:
    """backfill(stores, **parameters): a runner and the id of a queued job."""

    def make(stores: Any, **parameters: Any) -> tuple[JobRunner, Any]:
        runner = JobRunner(
            ledger=ledger, handlers=feature_kinds(stores), settings=JobSettings(heartbeat_s=0.05, patience_s=0)
        )
        return runner, runner.submit("backfill", {**period, "views": VIEWS, **parameters})

    return make


def test_every_view_is_filled_offline_and_online(backfill: Any, make_stores: Any, ledger: Any) -> None:
    """Each slice and each event view must be written offline in every version and online in the newest."""
    stores = make_stores()
    seen: list[tuple[int, int | None]] = []
    runner, job_id = backfill(stores, views=None)
    job = runner.run(job_id, progress=lambda done, total: seen.append((done, total))).check()
    slices, events = catalog().slice_views(), catalog().event_views()
    chunks = ledger.chunks.list(job_id)
    assert len(chunks) == 4 * len(slices) + len(events) == job.progress_done == job.progress_total
    assert all(chunk.state is ChunkState.DONE for chunk in chunks)
    assert seen[-1] == (len(chunks), len(chunks))
    for view in catalog().schemas:
        assert stores.offline.rows[view], view
        newest: dict[Any, Any] = {}
        for row in sorted(stores.offline.rows[view].values(), key=lambda row: row["event_timestamp"]):
            newest[tuple(row[name] for name in catalog().schema(view).keys)] = row["event_timestamp"]
        online = stores.online.rows[view]
        assert {key: row["event_timestamp"] for key, row in online.items()} == newest, view
    assert sum(chunk.rows for chunk in chunks) == sum(len(rows) for rows in stores.offline.rows.values())


def test_partitions_write_the_same_rows(backfill: Any, make_stores: Any, column: Any) -> None:
    """An event view in pieces must hold the same rows as the whole."""
    whole, pieces = make_stores(), make_stores()
    events = [view.name for view in catalog().event_views()]
    for stores, partitions in ((whole, 1), (pieces, 3)):
        runner, job_id = backfill(stores, views=events, partitions=partitions)
        runner.run(job_id).check()
    for view in events:
        assert column(whole.offline, view) == column(pieces.offline, view)


@pytest.mark.parametrize(("side", "fatal", "done"), [("offline", 4, 3), ("online", 2, 1)])
def test_a_crash_is_resumed_without_loss_or_double_work(
    side: str, fatal: int, done: int, backfill: Any, make_stores: Any, ledger: Any, column: Any
) -> None:
    """Killed before an offline or an online write, a job must resume to the state of an undisturbed one."""
    undisturbed, stores = make_stores(), make_stores()
    runner, job_id = backfill(undisturbed)
    runner.run(job_id).check()
    calls = 0

    def crash(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise KeyboardInterrupt

    store = getattr(stores, side)
    store.fail = crash
    runner, job_id = backfill(stores)
    with pytest.raises(KeyboardInterrupt):
        runner.run(job_id)
    assert ledger.get(job_id).state is JobState.CANCELLED
    counts = ledger.chunks.counts(job_id)
    assert counts[ChunkState.DONE] == done
    assert counts[ChunkState.RUNNING] == 0
    assert counts[ChunkState.OFFLINE_COMMITTED] == (1 if side == "online" else 0)
    store.fail = lambda *_: None
    runner.run(job_id, resume=True).check()
    for view in VIEWS:
        assert column(stores.offline, view) == column(undisturbed.offline, view)
        assert column(stores.online, view) == column(undisturbed.online, view)
    assert len(stores.offline.parts) == len(set(stores.offline.parts)), "no part is written twice"


def test_a_replay_computes_from_the_same_records(backfill: Any, make_stores: Any) -> None:
    """What was ingested between the crash and the resumption must not enter the job's rows."""
    stores = make_stores()

    def refuse(*_: Any) -> None:
        raise OSError("disk full")

    stores.online.fail = refuse
    runner, job_id = backfill(stores)
    assert runner.run(job_id).state is JobState.FAILED
    late = {**stores.records.read_all().transactions.to_pylist()[0], "seq": 999, "transaction_id": "late"}
    stores.records.extra.append(late | {"sender_id": "zz"})
    stores.online.fail = lambda *_: None
    runner.run(job_id, resume=True).check()
    assert ("zz",) not in stores.online.rows["account_topology"]
    created = {row["created_timestamp"] for row in stores.online.rows["account_topology"].values()}
    assert created == {row["created_timestamp"] for row in stores.offline.rows["account_topology"].values()}


def test_a_failed_chunk_leaves_its_error_and_the_rest_goes_on(backfill: Any, make_stores: Any, ledger: Any) -> None:
    """One bad write must fail one chunk, readably, and a resumption must retry that one only."""
    stores = make_stores()

    def refuse(_: Any, part: str) -> None:
        if part.startswith(f"account_proximity-{19_001 * 86_400_000}-"):
            raise OSError("no space left on device")

    runner, job_id = backfill(stores)
    stores.offline.fail = refuse
    job = runner.run(job_id)
    assert job.state is JobState.FAILED
    assert "1 of 8 chunks failed" in str(job.error)
    assert "no space left on device" in str(job.error)
    failed = [chunk for chunk in ledger.chunks.list(job_id) if chunk.state is ChunkState.FAILED]
    assert [chunk.error for chunk in failed] == ["OSError: no space left on device"]
    assert ledger.chunks.counts(job_id)[ChunkState.DONE] == 7
    stores.offline.fail = lambda *_: None
    before = len(stores.offline.parts)
    runner.run(job_id, resume=True).check()
    assert len(stores.offline.parts) == before + 1


def test_cancel_stops_at_a_chunk_and_keeps_what_is_done(backfill: Any, make_stores: Any, ledger: Any) -> None:
    """A job that is cancelled while it runs must stop soon, resumable, with no chunk left in hand."""
    stores = make_stores()
    runner, job_id = backfill(stores)
    written = threading.Event()

    def slow(*_: Any) -> None:
        written.set()
        threading.Event().wait(0.4)

    stores.online.fail = slow
    future = runner.start(job_id)
    assert written.wait(60)
    runner.cancel(job_id)
    assert future.result(60).state is JobState.CANCELLED
    counts = ledger.chunks.counts(job_id)
    assert counts[ChunkState.RUNNING] == counts[ChunkState.FAILED] == 0
    assert 0 < counts[ChunkState.DONE] + counts[ChunkState.OFFLINE_COMMITTED] < 8
    stores.online.fail = lambda *_: None
    assert runner.run(job_id, resume=True).state is JobState.DONE
    runner.close()


def test_closing_the_runner_hands_the_job_back(backfill: Any, make_stores: Any, ledger: Any) -> None:
    """A job that runs when its process shuts down must be queued again, for whoever comes next."""
    stores = make_stores()
    runner, job_id = backfill(stores)
    written = threading.Event()
    stores.offline.fail = lambda *_: (written.set(), threading.Event().wait(0.3))
    future = runner.start(job_id)
    assert written.wait(60)
    runner.close()
    assert future.result(60).state is JobState.QUEUED
    assert ledger.chunks.counts(job_id)[ChunkState.RUNNING] == 0


def test_chunks_of_changed_code_are_refused(ledger: Any, make_stores: Any, period: Any) -> None:
    """A job that was planned with other feature code must not mix its rows with those of today's."""
    stores = make_stores()
    schemas = {name: catalog().schema(name) for name in VIEWS}

    def run(context: JobContext) -> None:
        run_backfill(context, stores, schemas=schemas)

    runner = JobRunner(ledger=ledger, handlers={"backfill": JobKind(run=run, parameters=BackfillParameters)})
    job_id = runner.submit("backfill", period)
    stores.online.fail = lambda *_: 1 / 0
    assert runner.run(job_id).state is JobState.FAILED
    schemas["account_topology"] = replace(schemas["account_topology"], code_hash="other")
    stores.online.fail = lambda *_: None
    job = runner.run(job_id, resume=True)
    assert job.state is JobState.FAILED
    assert "start a new job" in str(job.error)
    assert ledger.chunks.counts(job_id)[ChunkState.DONE] == 4


def test_without_a_period_the_whole_history_is_planned(ledger: Any, make_stores: Any) -> None:
    """Slices must lie on multiples of `every` around all payments."""
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(make_stores()))
    job_id = runner.submit("backfill", {"views": ["account_topology"], "every": "2d"})
    runner.run(job_id).check()
    days = [chunk.key.start_ms // 86_400_000 for chunk in ledger.chunks.list(job_id)]
    assert days == [19_002, 19_000]


def test_the_plan_names_every_piece_once() -> None:
    """Parts must be unique and the same for every plan of the same period."""
    views = list(catalog().schemas.values())
    plan = {"from_ms": 0, "to_ms": 10, "every_ms": 4, "partitions": 2, "source_seq": 7, "settings": FeatureSettings()}
    keys = plan_backfill(views, **plan)
    parts = [key.part() for key in keys]
    assert len(set(parts)) == len(parts)
    assert [key.part() for key in plan_backfill(views, **plan)] == parts
    n_slices = sum(view.cadence is Cadence.SLICE for view in views)
    assert len(keys) == 3 * n_slices + 2 * (len(views) - n_slices)
    assert str(ChunkKey(view="v", view_hash="h", start_ms=0, end_ms=0, source_seq=1)) == "v at 1970-01-01T00:00:00Z"


def test_materialize_refreshes_what_is_pending_and_adds_a_slice(
    ledger: Any, make_stores: Any, period: Any, tmp_path: Path
) -> None:
    """Marks must be gone, event rows of the marked accounts stored, and the slice computed at as_of."""
    online = SqliteOnlineStore(tmp_path / "online.sqlite", project="test")
    stores = make_stores(online=online)
    online.mark_pending([("a0",), ("nobody",)])
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(stores))
    runner.run(runner.submit("materialize", {"as_of": period["to"]})).check()
    assert online.all_pending() == {}
    for view in catalog().schemas.values():
        if view.entity == "account":
            (packed,) = online.read([(view, [("a0",), ("a1",)])])
            assert [value is not None for value in packed] == [True, view.cadence is Cadence.SLICE], view.name
    online.close()


def test_slices_default_to_the_instant_when_the_job_was_due(ledger: Any, make_stores: Any, clock: Any) -> None:
    """A slice without as_of must speak for the job's own time, however late it runs."""
    stores = make_stores()
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(stores))
    job_id = runner.submit("slices", {"views": ["account_topology"]})
    due = clock.now
    clock.advance(3_600)
    runner.run(job_id).check()
    assert {row["event_timestamp"] for row in stores.offline.rows["account_topology"].values()} == {due}
