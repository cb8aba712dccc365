"""Two schedulers on one ledger while the leading one is killed again and again: `make chaos-schedule`.

A tick is due every second. Each process that runs one says so in a file before and after, so that the ledger's word can
be checked against what was really done: every second between the first and the last tick must have exactly one tick,
with a job that is done; a tick may have been begun twice only when its scheduler was killed in the middle of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from bench.timing import note
from graph_features.jobs.engine import postgres_engine
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.records import JobState
from graph_features.jobs.runner import JobContext
from graph_features.jobs.schedule import run_schedule
from graph_features.settings import JobSettings, PostgresSettings, load
from infra.local import servers

SCHEDULE = "jobs: [{name: fast, kind: note, every: 1s, catch_up: all, misfire_grace: 10m}]"
SETTINGS = JobSettings(heartbeat_s=0.5, expiry_s=3.0, patience_s=10.0)
SECOND = timedelta(seconds=1)
SETTLE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What happened. `repeated` ticks were begun more than once, each because of a kill."""

    seconds: float
    kills: int
    ticks: int
    repeated: int
    longest_gap_s: float

    def __str__(self) -> str:
        return (
            f"{self.ticks} ticks in {self.seconds:.0f} s, each had once, none missed, through {self.kills} deaths of "
            f"the leader; {self.repeated} were begun a second time; the longest wait for a tick was "
            f"{self.longest_gap_s:.1f} s"
        )


def work(schedule: Path, journal: Path) -> None:
    """One scheduler: what the child process runs."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ledger = Ledger(postgres_engine(load(PostgresSettings)), expiry_s=SETTINGS.expiry_s)

    def tell(context: JobContext) -> None:
        for word in ("begun", "done"):
            line = f"{word} {context.due_at.isoformat()} {time.time():.3f} {os.getpid()}\n"
            with journal.open("a") as file:
                file.write(line)

    run_schedule(schedule, {"note": tell}, ledger, stop, settings=SETTINGS, lead_poll_s=0.5)


@dataclass(kw_only=True)
class Pair:
    """Two schedulers, each replaced when it dies."""

    environment: dict[str, str]
    schedule: Path
    journal: Path

    def __post_init__(self) -> None:
        self.processes = [self.start() for _ in range(2)]

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "bench.chaos_schedule", "--work", str(self.schedule), str(self.journal)]
        with (self.journal.parent / "schedulers.log").open("ab") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def kill(self, pid: int) -> bool:
        """SIGKILL the scheduler with this pid and start another in its place; False when there is none."""
        for position, process in enumerate(self.processes):
            if process.pid == pid and process.poll() is None:
                process.kill()
                process.wait()
                self.processes[position] = self.start()
                return True
        return False

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run(home: Path, *, seconds: float, kill_every_s: float) -> Report:
    """Let two schedulers run for a while in `home`, kill the leader now and then, and check what they did."""
    home.mkdir(parents=True, exist_ok=True)
    services = servers.up(home, only=["postgres"])
    try:
        ledger = Ledger(postgres_engine(services.postgres), expiry_s=SETTINGS.expiry_s)
        ledger.create_schema()
        with _pair(home, services.environment) as pair:
            kills = _kill_leaders(ledger, pair, seconds=seconds, kill_every_s=kill_every_s)
            _await_settled(ledger)
        report = _check(ledger, pair.journal, seconds=seconds, kills=kills)
        ledger.close()
        return report
    finally:
        servers.down(home, purge=True)


@contextmanager
def _pair(home: Path, environment: dict[str, str]) -> Iterator[Pair]:
    schedule, journal = home / "schedule.yaml", home / "journal.txt"
    schedule.write_text(SCHEDULE)
    journal.touch()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RINGFENCE_")}
    pair = Pair(environment={**inherited, **environment}, schedule=schedule, journal=journal)
    try:
        yield pair
    finally:
        pair.stop()


def _kill_leaders(ledger: Ledger, pair: Pair, *, seconds: float, kill_every_s: float) -> int:
    kills = 0
    while not ledger.schedules.tick_times("fast"):
        time.sleep(0.1)  # the first scheduler is still starting
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if time.monotonic() - began > kill_every_s * (kills + 1):
            entries = ledger.schedules.entries()
            leader = int(entries[0].leader.split(":")[1]) if entries else 0
            if pair.kill(leader):
                kills += 1
                note(f"  {time.monotonic() - began:.0f} s: leader {leader} killed")
        time.sleep(0.1)
    return kills


def _await_settled(ledger: Ledger) -> None:
    """Wait until no tick is due and no job is left behind."""
    give_up = time.monotonic() + SETTLE_S
    while time.monotonic() < give_up:
        newest = ledger.schedules.tick_times("fast", limit=1)
        busy = ledger.list(states=[JobState.QUEUED, JobState.RUNNING], limit=3)
        if newest and ledger.clock() - newest[0] < 2 * SECOND and len(busy) <= 1:
            return
        time.sleep(0.2)
    raise AssertionError(f"the schedulers did not catch up within {SETTLE_S} s")


def _check(ledger: Ledger, journal: Path, *, seconds: float, kills: int) -> Report:
    ticks = sorted(ledger.schedules.tick_times("fast", limit=1_000_000))
    jobs = [job for job in ledger.list(limit=1_000_000) if job.state is JobState.DONE]
    gaps = [late - early for early, late in pairwise(ticks)]
    assert gaps.count(SECOND) == len(gaps), f"ticks are missing: {[gap for gap in gaps if gap != SECOND]}"
    done = Counter(job.due_at for job in jobs)
    unfinished = [tick for tick in ticks if done[tick] != 1]
    assert len(unfinished) <= 1, f"ticks without one finished job: {unfinished}"  # one may have been at work at the end
    begun: dict[str, list[float]] = {}
    for line in journal.read_text().splitlines():
        word, due_at, at, _ = line.split()
        if word == "begun":
            begun.setdefault(due_at, []).append(float(at))
    repeated = sum(len(times) > 1 for times in begun.values())
    assert repeated <= kills, f"{repeated} ticks were begun twice, with {kills} kills"
    starts = sorted(min(times) for times in begun.values())
    return Report(
        seconds=seconds,
        kills=kills,
        ticks=len(ticks),
        repeated=repeated,
        longest_gap_s=max(late - early for early, late in pairwise(starts)),
    )


def main() -> None:
    """The full run: five minutes, a kill every 30 seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--kill-every-s", type=float, default=30.0)
    parser.add_argument("--work", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return
    home = Path(tempfile.mkdtemp(prefix="ringfence-chaos-"))
    try:
        report = run(home, seconds=arguments.seconds, kill_every_s=arguments.kill_every_s)
    finally:
        with suppress(OSError):
            shutil.rmtree(home)
    note(str(report))


if __name__ == "__main__":
    main()
