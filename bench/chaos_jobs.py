"""A backfill while everything around it is killed: `make chaos-jobs`.

One set of real servers, one history. First an undisturbed backfill, whose rows are kept for comparison; then the same
again, with several workers and a scheduler beside it, while SIGKILL goes to a worker, the scheduler, PostgreSQL, Redis
and Neo4j in turn, at random moments. An operator who only ever repeats the same command stands by. At the end every
slice must be there once, offline and online must equal the undisturbed run, and the ledger must tell what happened.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from bench.chaos_world import DAY, START, Operator, World
from bench.timing import note
from graph_features.catalog import catalog
from graph_features.errors import RingfenceError, StoreUnavailableError
from graph_features.jobs.patience import insist
from graph_features.jobs.records import ChunkState, Job, JobState

TARGETS = ("worker", "scheduler", "postgres", "redis", "neo4j")
PATIENCE_S = 120.0
SCHEDULE = """
jobs:
  - {name: graph, kind: sync_graph, every: 1s, catch_up: last, misfire_grace: 1m}
  - {name: pending, kind: materialize, every: 2s, catch_up: last, misfire_grace: 1m}
  - {name: check, kind: verify, every: 5s, catch_up: last, misfire_grace: 1m}
"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the chaos did, and what came of it."""

    kills: Counter[str]
    commands: int
    chunks: int
    repeated: int
    seconds: float
    jobs: Counter[str]

    def __str__(self) -> str:
        killed = ", ".join(f"{count} x {name}" for name, count in sorted(self.kills.items()))
        return (
            f"{self.chunks} chunks done in {self.seconds:.0f} s through {sum(self.kills.values())} kills ({killed}); "
            f"{self.repeated} chunks were tried more than once, the backfill command ran {self.commands} times; "
            f"scheduled jobs meanwhile: {dict(self.jobs)}"
        )


def chaos(world: World, *, kills: int, workers: int, limit_s: float) -> Report:
    """Run the backfill twice, undisturbed and disturbed, and compare; raise AssertionError with what differs."""
    note("undisturbed run")
    undisturbed = world.backfill(workers)
    assert undisturbed.wait(limit_s) == 0, (world.home / "commands.log").read_text()
    offline, online = world.offline(), world.newest_online()
    world.forget()
    note("disturbed run")
    schedule = world.home / "schedule.yaml"
    schedule.write_text(SCHEDULE)
    backfill = Operator(run=lambda: world.backfill(workers), until_success=True)
    scheduler = Operator(run=lambda: world.start("schedule", "--file", str(schedule)), until_success=False)
    began = time.monotonic()
    killed, stop = Counter[str](), threading.Event()
    trickle = threading.Thread(target=_trickle, args=(world, stop), daemon=True)
    trickle.start()
    try:
        _disturb(world, backfill, scheduler, killed, kills=kills, limit_s=limit_s)
        seconds = time.monotonic() - began
        stop.set()
        trickle.join()
        _await_quiet(world, scheduler)
    finally:
        stop.set()
        backfill.stop()
        scheduler.stop()
    _check_slices(world)
    assert world.offline() == offline, "offline rows differ from the undisturbed run"
    assert world.newest_online() == online, "online rows differ from the undisturbed run"
    return _told(world, killed, backfill.times, seconds)


def _disturb(
    world: World, backfill: Operator, scheduler: Operator, killed: Counter[str], *, kills: int, limit_s: float
) -> None:
    """Kill one thing after another, spread over the backfill's progress, until it has ended by itself."""
    pick = random.Random(world.seed)
    plan = [TARGETS[at % len(TARGETS)] for at in range(kills)]
    pick.shuffle(plan)
    # Its restart takes long, and with few kills the others would come when the backfill is over.
    plan.sort(key=lambda target: target == "neo4j" and kills <= len(TARGETS))
    total = world.slices * len(catalog().slice_views())
    give_up = time.monotonic() + limit_s
    while not backfill.tend():
        assert time.monotonic() < give_up, f"not done in {limit_s} s: " + (world.home / "commands.log").read_text()
        scheduler.tend()
        finished = _finished_chunks(world)
        # Early enough that the last one comes amid the work too.
        if plan and kills - len(plan) < kills * finished / total * 1.25:
            # Not one that is still coming back, as long as there are others.
            target = next((one for one in plan if not world.is_restarting(one)), plan[0])
            plan.remove(target)
            time.sleep(pick.random() * 0.5)
            note(f"  {finished} of {total} chunks: SIGKILL to {target}")
            _kill(world, target, backfill, scheduler, pick)
            killed[target] += 1
        time.sleep(0.1)
    world.await_restarts()


def _kill(world: World, target: str, backfill: Operator, scheduler: Operator, pick: random.Random) -> None:
    if target == "worker":
        backfill.kill(pick)
    elif target == "scheduler":
        scheduler.kill(pick)
    else:
        world.kill(target, after_s=pick.random())


def _finished_chunks(world: World) -> int:
    def count() -> int:
        jobs = world.ledger.list(kind="backfill")
        return max((world.ledger.chunks.counts(job.id)[ChunkState.DONE] for job in jobs), default=0)

    return insist(count, patience_s=PATIENCE_S)


def _trickle(world: World, stop: threading.Event) -> None:
    """Payments go on meanwhile, after the period of the backfill."""
    end = START + world.slices * DAY
    number = 0
    while not stop.wait(0.2):
        first = 1_000_000 + 5 * number
        moment = end + timedelta(minutes=number)
        with suppress(StoreUnavailableError):  # the same again next time
            world.pay(5, first=first, start=moment, span=timedelta(seconds=10))
            number += 1


def _await_quiet(world: World, scheduler: Operator) -> None:
    """Wait until the scheduler has brought graph and features up to date with the payments."""
    from graph_features.sources.neo4j import Neo4jGraph

    graph = Neo4jGraph(world.services.neo4j)
    give_up = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < give_up:
            scheduler.tend()
            with suppress(RingfenceError):
                if graph.watermark() == world.records.max_seq() and not world.online.all_pending():
                    return
            time.sleep(0.5)
    finally:
        graph.close()
    raise AssertionError("the schedule did not bring graph and features up to date")


def _check_slices(world: World) -> None:
    """Every slice once: one row per account and as_of, every as_of of the period, one finished chunk each."""
    with world.connection() as connection:
        for view in catalog().slice_views():
            query = f'SELECT count(*), count(DISTINCT (account_id, event_timestamp)) FROM features."{view.name}"'
            (rows, distinct), *_ = connection.execute(query.encode()).fetchall()
            assert rows == distinct, f"{view.name}: {rows - distinct} rows are there twice"
    (job,) = world.ledger.list(kind="backfill")
    assert job.state is JobState.DONE, job
    chunks = world.ledger.chunks.list(job.id)
    assert len(chunks) == world.slices * len(catalog().slice_views())
    assert {chunk.state for chunk in chunks} == {ChunkState.DONE}
    covered = Counter(one.view for one in world.ledger.coverage.list() if one.is_slice)
    assert covered == Counter({view.name: world.slices for view in catalog().slice_views()})


def _told(world: World, killed: Counter[str], commands: int, seconds: float) -> Report:
    (backfill,) = world.ledger.list(kind="backfill")
    chunks = world.ledger.chunks.list(backfill.id)
    scheduled = [job for job in world.ledger.list(limit=100_000) if job.requested_by.startswith("schedule:")]
    for name in ("graph", "pending", "check"):
        ticks = world.ledger.schedules.tick_times(name, limit=100_000)
        mine = [job for job in scheduled if job.requested_by == f"schedule:{name}"]
        assert len(ticks) == len(set(ticks)) == len(mine), f"{name}: {len(ticks)} ticks, {len(mine)} jobs"
        assert all(_is_told(job) for job in mine), f"{name}: a job ended without saying how"
    return Report(
        kills=killed,
        commands=commands,
        chunks=len(chunks),
        repeated=sum(chunk.attempts > 1 for chunk in chunks),
        seconds=seconds,
        jobs=Counter(f"{job.kind} {job.state}" for job in scheduled),
    )


def _is_told(job: Job) -> bool:
    return job.state is not JobState.FAILED or bool(job.error)


def run(home: Path, *, slices: int, accounts: int, payments: int, kills: int, workers: int, seed: int = 1) -> Report:
    """Build a world in `home`, disturb it, and take it down again."""
    world = World(home=home, slices=slices, accounts=accounts, seed=seed)
    try:
        note(f"{payments} payments of {accounts} accounts, {slices} slices, {kills} kills")
        world.pay(payments, first=0, start=START - DAY, span=(slices + 1) * DAY)
        return chaos(world, kills=kills, workers=workers, limit_s=1_800)
    finally:
        world.close()


def main() -> None:
    """The full run: 60 slices, 20 kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--accounts", type=int, default=20_000)
    parser.add_argument("--payments", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="ringfence-chaos-"))
    try:
        report = run(home, **vars(arguments))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    note(str(report))


if __name__ == "__main__":
    main()
