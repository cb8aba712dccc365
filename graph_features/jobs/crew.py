"""Several workers on one job's chunks: the runner itself and helper processes, each with a claim loop of its own."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol
from uuid import uuid4

from graph_features.catalog import catalog
from graph_features.errors import JobError
from graph_features.jobs.patience import insist
from graph_features.jobs.records import Chunk, ChunkState
from graph_features.jobs.runner import JobContext
from graph_features.jobs.stores import Stores
from graph_features.jobs.work import BLOCKED_WAIT_S, Work, do_chunks, is_over
from graph_features.schema import ViewSchema
from graph_features.settings import ExecutorKind, ExecutorSettings, load

log = logging.getLogger(__name__)

LOST_HELPERS = 20
"""So many helpers of a run may die before it goes on without them."""

STOP_WAIT_S = 30.0


def run_chunks(context: JobContext, stores: Stores, schemas: Mapping[str, ViewSchema], *, workers: int = 1) -> None:
    """Do every chunk of the job that is not done, with `workers` processes; raise JobError when some failed.

    A failed chunk leaves its error in the ledger and the others go on. Chunks that failed because a store was away
    are tried again, up to the settings' max_attempts. A chunk that an earlier try has written offline is computed
    again from the same records and written online only.
    """
    ledger = context.ledger.chunks
    ledger.reopen(context.job.id)
    ledger.replay_lost(context.job.id, epoch=stores.online.epoch())
    planned = ledger.list(context.job.id)
    progress = _Progress(context=context, total=len(planned))
    progress.tell()
    if all(chunk.state is ChunkState.DONE for chunk in planned):
        return
    work = Work.load(stores, schemas, planned)
    context.check()
    for name in sorted({chunk.key.view for chunk in planned} & set(schemas)):
        stores.offline.create_view(schemas[name])
    helpers = min(workers, len(planned)) - 1
    with Crew(context=context, stores=stores, helpers=helpers, start=starter(helpers)) as crew:
        for _ in do_chunks(context, work, claims(context, stores, crew.tend)):
            progress.tell()
    progress.tell()
    for partitions in {chunk.key.partitions for chunk in planned if work.in_files(chunk.key)}:
        work.files(partitions).discard()
    _raise_failed(context)


def _raise_failed(context: JobContext) -> None:
    chunks = context.ledger.chunks.list(context.job.id)
    failed = [chunk for chunk in chunks if chunk.state is ChunkState.FAILED]
    if failed:
        first = f"{failed[0].key}: {failed[0].error}"
        raise JobError(f"{len(failed)} of {len(chunks)} chunks failed, resume the job to retry them (first: {first})")


@dataclass(kw_only=True)
class _Progress:
    context: JobContext
    total: int

    def tell(self) -> None:
        counts = insist(
            lambda: self.context.ledger.chunks.counts(self.context.job.id),
            patience_s=self.context.settings.patience_s,
            stop=self.context.stop,
        )
        self.context.progress(counts[ChunkState.DONE], self.total)


def claims(context: JobContext, stores: Stores, tend: Callable[[], None] = lambda: None) -> Iterator[Chunk]:
    """Yield chunks as they become ours; wait for those whose work another worker has in hand."""
    ledger, patience_s = context.ledger.chunks, context.settings.patience_s

    def claim() -> tuple[Chunk | None, bool]:
        tend()
        chunk = ledger.claim(context.job.id, context.runner)
        if chunk is not None or not is_over(ledger.counts(context.job.id)):
            return chunk, False
        again = ledger.reopen(context.job.id, outages_below=context.settings.max_attempts)
        again += ledger.replay_lost(context.job.id, epoch=stores.online.epoch())
        return None, not again

    while True:
        context.check()
        chunk, over = insist(claim, patience_s=patience_s, stop=context.stop)
        if over:
            return
        if chunk is None:
            context.stop.wait(BLOCKED_WAIT_S)
        else:
            yield chunk


class Helper(Protocol):
    """A process somewhere that claims and does chunks by itself."""

    def ended(self) -> str | None:
        """How it died; empty when it ended by itself, None while it works."""

    def stop(self) -> None:
        """Have it put down its work; returns at once."""

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended, and end it when it does not."""


StartHelper = Callable[[JobContext, Stores, str], Helper]
"""start(context, stores, name): a helper that works on the job of `context` under that name."""


@dataclass(kw_only=True)
class Crew:
    """Helpers of one run. One that dies is replaced, and its chunk is free again at once."""

    context: JobContext
    stores: Stores
    helpers: int
    start: StartHelper
    _running: dict[str, Helper] = field(default_factory=dict)
    _lost: int = 0

    def __enter__(self) -> Crew:
        for _ in range(self.helpers):
            self._start()
        return self

    def _start(self) -> None:
        name = f"{self.context.runner}:helper-{uuid4().hex[:8]}"
        self._running[name] = self.start(self.context, self.stores, name)

    def tend(self) -> None:
        """Replace helpers that died; those that ended by themselves found nothing more to do."""
        for name, helper in list(self._running.items()):
            died = helper.ended()
            if not died:
                continue
            log.warning("helper %s of job %s died (%s)", name, self.context.job.id, died)
            self.context.ledger.chunks.release(self.context.job.id, name)
            self._running.pop(name).stop()
            self._lost += 1
            if self._lost <= LOST_HELPERS:
                self._start()

    def __exit__(self, *_: object) -> None:
        for helper in self._running.values():
            helper.stop()
        for helper in self._running.values():
            helper.join(STOP_WAIT_S)


class LocalHelper:
    """A plain process at the other end of a pipe: when it closes, because the run ends or dies, the helper stops."""

    def __init__(self, context: JobContext, stores: Stores, name: str) -> None:
        from graph_features.jobs.helper import Assignment

        # A session of its own: Ctrl-C is the runner's to hear.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "graph_features.jobs.helper"], stdin=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        assignment = Assignment(
            stores=stores, ledger=context.ledger, job=context.job, name=name, settings=context.settings
        )
        with suppress(BrokenPipeError):  # it died at once: `ended` says so
            pickle.dump(assignment, self._process.stdin)
            self._process.stdin.flush()

    def ended(self) -> str | None:
        code = self._process.poll()
        return None if code is None else f"exit code {code}" if code else ""

    def stop(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def join(self, timeout_s: float) -> None:
        try:
            self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def starter(helpers: int) -> StartHelper:
    """Return how helpers start, as RINGFENCE_EXECUTOR says; a run without any asks nothing of Ray."""
    settings = load(ExecutorSettings)
    if settings.executor is ExecutorKind.PROCESS or not helpers:
        return LocalHelper
    from graph_features.jobs.ray_helper import ray_starter

    return ray_starter(settings)


def help_out(context: JobContext, stores: Stores) -> None:
    """Do chunks of a running job as one of its helpers, until none is left or `context.stop` is set."""
    planned = context.ledger.chunks.list(context.job.id)
    work = Work.load(stores, catalog().schemas, planned)
    for _ in do_chunks(context, work, claims(context, stores)):
        pass
