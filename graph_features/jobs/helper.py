"""A helper process of a run (see crew): `python -m graph_features.jobs.helper`, told over standard input what to do."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from graph_features.errors import JobCancelledError, RingfenceError
from graph_features.jobs.crew import help_out
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.patience import insist
from graph_features.jobs.records import Job
from graph_features.jobs.runner import JobContext, heartbeat
from graph_features.jobs.stores import Stores
from graph_features.settings import JobSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a helper is told: the job, what it works on, and the name that its chunks are claimed under."""

    stores: Stores
    ledger: Ledger
    job: Job
    name: str
    settings: JobSettings


def main(source: BinaryIO) -> None:
    """Work on the job that `source` names, until nothing is left to do or `source` ends."""
    assignment: Assignment = pickle.load(source)  # noqa: S301  the parent process is the other end
    let_go = threading.Event()
    threading.Thread(target=_watch, args=(source, let_go), daemon=True).start()
    work(assignment, let_go)


def work(assignment: Assignment, let_go: threading.Event) -> None:
    """Do chunks of the job until nothing is left to do, or `let_go` is set; then put down what is in hand."""
    ledger, job, name, settings = assignment.ledger, assignment.job, assignment.name, assignment.settings

    def beat() -> bool:
        return ledger.chunks.beat(job.id, name, attempt=job.attempts)

    with heartbeat(beat, settings.heartbeat_s, name=name, stopping=let_go) as stop:
        context = JobContext(job=job, ledger=ledger, runner=name, stop=stop, settings=settings)
        try:
            with suppress(JobCancelledError):
                help_out(context, assignment.stores)
        except RingfenceError as error:
            log.warning("helper %s: %s", name, error)  # the chunk's own error is in the ledger
        finally:
            insist(lambda: ledger.chunks.release(job.id, name), patience_s=settings.patience_s)


def _watch(source: BinaryIO, let_go: threading.Event) -> None:
    # Not through `source`: a thread that waits inside of its lock cannot be ended with the process.
    while os.read(source.fileno(), 4096):
        pass
    let_go.set()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    main(sys.stdin.buffer)
