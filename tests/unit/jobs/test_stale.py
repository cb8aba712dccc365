"""Late data and changed code: the slices that they touch are known by name and computed anew, and no others."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from graph_features.catalog import catalog
from graph_features.clock import DAY_MS, from_ms
from graph_features.drivers.batch import slice_rows
from graph_features.edges import EdgeTable
from graph_features.jobs.backfill import run_backfill, run_recompute
from graph_features.jobs.estimates import estimate, progress_of
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.records import ChunkState, JobState
from graph_features.jobs.runner import JobKind, JobRunner
from graph_features.jobs.stale import BLIND_TO_LABELS, find_stale
from graph_features.jobs.status import platform_status
from graph_features.settings import FeatureSettings

FIRST_DAY = 19_000
VIEWS = ["account_topology", "account_proximity"]
SCHEMAS = [catalog().schema(name) for name in VIEWS]


@pytest.fixture
def filled(ledger: Any, make_stores: Any, period: Any) -> Any:
    """Stores with four slices of two views, and a runner over them."""
    stores = make_stores()
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(stores))
    runner.run(runner.submit("backfill", {**period, "views": VIEWS})).check()
    return stores, runner


def late_payment(stores: Any, *, day: float) -> None:
    """A payment that happened `day` days after the first midnight and is ingested now."""
    like = stores.records.read_all().transactions.to_pylist()[0]
    moment = from_ms(FIRST_DAY * DAY_MS) + timedelta(days=day)
    late = {"seq": stores.records.max_seq() + 1, "transaction_id": f"late-{day}", "event_timestamp": moment}
    stores.records.extra.append(like | late)


def test_nothing_is_stale_after_a_backfill(filled: Any, ledger: Any) -> None:
    """What was just computed must not be computed again."""
    stores, runner = filled
    assert find_stale(ledger, stores, SCHEMAS).keys == ()
    job = runner.run(runner.submit("recompute", {})).check()
    assert ledger.chunks.list(job.id) == []


def test_late_data_touches_the_slices_after_it_and_no_others(filled: Any, ledger: Any) -> None:
    """A payment amid day 1 must overtake the slices of days 2 and 3; recomputed, they equal slices that saw it."""
    stores, runner = filled
    late_payment(stores, day=1.5)
    stale = find_stale(ledger, stores, SCHEMAS)
    days = Counter(one.start_ms // DAY_MS - FIRST_DAY for one in stale.late)
    assert days == {2: 2, 3: 2}
    assert stale.changed_code == ()
    before = list(stores.offline.parts)
    job = runner.run(runner.submit("recompute", {})).check()
    written = stores.offline.parts[len(before) :]
    assert {chunk.key.start_ms // DAY_MS - FIRST_DAY for chunk in ledger.chunks.list(job.id)} == {2, 3}
    assert len(written) == 4
    assert find_stale(ledger, stores, SCHEMAS).keys == ()
    records = stores.records.read_all()
    edges = EdgeTable.from_arrow(records.transactions, records.statuses, records.labels, max_seq=records.max_seq)
    wanted = slice_rows(SCHEMAS[0], edges, as_of_ms=(FIRST_DAY + 3) * DAY_MS, settings=FeatureSettings())
    for row in wanted.to_pylist():
        assert stores.online.rows["account_topology"][(row["account_id"],)] == row


def test_new_data_makes_nothing_stale(filled: Any, ledger: Any) -> None:
    """What happens after the newest slice must leave every slice alone."""
    stores, _ = filled
    late_payment(stores, day=3.5)
    assert find_stale(ledger, stores, SCHEMAS).keys == ()


def test_changed_code_makes_the_views_slices_stale(filled: Any, ledger: Any, period: Any) -> None:
    """A view of other code must be stale as a whole, the other view not at all; one command mends it."""
    stores, _ = filled
    changed = {schema.name: schema for schema in SCHEMAS} | {VIEWS[0]: replace(SCHEMAS[0], code_hash="other")}
    stale = find_stale(ledger, stores, list(changed.values()))
    assert stale.by_view() == {VIEWS[0]: {"code": 4, "late": 0}}

    def recompute(context: Any) -> None:
        run_recompute(context, stores, schemas=changed)

    runner = JobRunner(ledger=ledger, handlers={"recompute": JobKind(run=recompute)})
    runner.run(runner.submit("recompute", {})).check()
    assert find_stale(ledger, stores, list(changed.values())).keys == ()


def test_an_event_view_of_other_code_is_recomputed_whole(ledger: Any, make_stores: Any, period: Any) -> None:
    """Its ranges become one, from the first to the last payment, and earlier ranges inside of it are forgotten."""
    stores = make_stores()
    view = catalog().schema("account_activity")
    old, new = {view.name: replace(view, code_hash="old")}, {view.name: view}

    def backfill(context: Any) -> None:
        run_backfill(context, stores, schemas=old)

    runner = JobRunner(ledger=ledger, handlers={"backfill": JobKind(run=backfill)})
    runner.run(runner.submit("backfill", {**period, "views": [view.name], "partitions": 2})).check()
    stale = find_stale(ledger, stores, [view])
    assert stale.by_view() == {view.name: {"code": 2, "late": 0}}
    assert [key.partition for key in stale.keys] == [0, 1]

    def recompute(context: Any) -> None:
        run_recompute(context, stores, schemas=new)

    runner = JobRunner(ledger=ledger, handlers={"recompute": JobKind(run=recompute)})
    runner.run(runner.submit("recompute", {})).check()
    assert find_stale(ledger, stores, [view]).keys == ()
    assert len(ledger.coverage.list([view.name])) == 2


@pytest.mark.parametrize("name", sorted(BLIND_TO_LABELS))
def test_views_that_are_said_to_be_blind_to_labels_are(name: str, make_stores: Any) -> None:
    """With labels and without them every row must be the same, or late labels would go unnoticed."""
    records = make_stores().records.read_all()
    view = catalog().schema(name)
    with_labels, without = (
        slice_rows(
            view,
            EdgeTable.from_arrow(records.transactions, records.statuses, labels, max_seq=99),
            as_of_ms=(FIRST_DAY + 4) * DAY_MS,
            settings=FeatureSettings(),
        )
        for labels in (records.labels, None)
    )
    assert with_labels.equals(without)


def test_the_online_store_that_lost_its_memory_gets_its_rows_again(filled: Any, ledger: Any) -> None:
    """Rows acknowledged by an earlier life of the online store must be written again before the job counts as done."""
    stores, runner = filled
    (job,) = ledger.list()
    parts = list(stores.offline.parts)
    stores.online.rows.clear()
    stores.online.life = "second"
    assert ledger.chunks.replay_lost(job.id, epoch="second") == 8
    ledger.cancel(ledger.submit("backfill", {}, requested_by="x"))
    assert ledger.chunks.counts(job.id)[ChunkState.OFFLINE_COMMITTED] == 8
    with ledger.engine.begin() as connection:  # as if the job had died with the store
        connection.exec_driver_sql("UPDATE jobs SET state = 'cancelled' WHERE kind = 'backfill'")
    runner.run(job.id, resume=True).check()
    assert stores.offline.parts == parts, "offline nothing is written again"
    newest = {row["event_timestamp"] for row in stores.online.rows["account_topology"].values()}
    assert newest == {from_ms((FIRST_DAY + 3) * DAY_MS)}


def test_a_paused_job_goes_on_where_it_stopped(ledger: Any, make_stores: Any, period: Any) -> None:
    """Pause must stop at a safe point, survive, and resume to the end without repeating a chunk."""
    stores = make_stores()
    runner = JobRunner(ledger=ledger, handlers=feature_kinds(stores))
    job_id = runner.submit("backfill", {**period, "views": VIEWS})

    def pause(*_: Any) -> None:
        if len(stores.offline.parts) == 3:
            context_stop(runner, job_id)

    stores.offline.fail = pause
    assert runner.run(job_id).state is JobState.PAUSED
    assert runner.pause(job_id).state is JobState.PAUSED
    progress = progress_of(ledger, job_id)
    assert 0 < progress.counts[ChunkState.DONE] < 8
    assert progress.eta_s is not None
    stores.offline.fail = lambda *_: None
    runner.run(job_id, resume=True).check()
    assert len(stores.offline.parts) == len(set(stores.offline.parts))


def context_stop(runner: JobRunner, job_id: Any) -> None:
    """Ask for a pause and wait until the heartbeat has brought it."""
    import time

    runner.pause(job_id)
    time.sleep(2 * runner.settings.heartbeat_s + 0.5)


def test_estimates_come_from_what_ran(filled: Any, ledger: Any) -> None:
    """Without experience of a view there is no estimate; with it, it grows with the chunks and shrinks with workers."""
    (job,) = ledger.list()
    keys = [chunk.key for chunk in ledger.chunks.list(job.id)]
    one, two = estimate(ledger, keys, workers=1), estimate(ledger, keys, workers=2)
    assert one.seconds == pytest.approx(2 * two.seconds)
    assert estimate(ledger, keys[:2], workers=1).seconds < one.seconds
    unknown = estimate(ledger, [replace(keys[0], view="account_rings")], workers=1)
    assert unknown.seconds is None
    assert "account_rings" in str(unknown)


def test_status_tells_freshness_and_lag(filled: Any, ledger: Any) -> None:
    """A slice view must show its newest slice and age, a graph its lag, and what cannot be asked must be told."""
    stores, _ = filled

    class Graph:
        def watermark(self) -> int:
            return 20

    class Marked:
        def all_pending(self) -> dict[tuple[str, ...], str]:
            return {("a1",): "x", ("a1", "a2"): "x"}

    stores.graph = Graph()
    stores.online = Marked()
    late_payment(stores, day=0.5)
    found = platform_status(ledger, stores)
    views = {view.view: view for view in found.views}
    assert views["account_topology"].as_of == from_ms((FIRST_DAY + 3) * DAY_MS)
    assert views["account_topology"].is_late, "the slices are years old"
    assert views["account_topology"].stale == {"code": 0, "late": 3}
    assert views["account_activity"].pending_keys == 1
    assert found.graph_lag == stores.records.max_seq() - 20
    assert found.counts == {("backfill", JobState.DONE): 1}
