"""Several workers on one job's chunks: the runner itself and helper processes, each with a claim loop of its own."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any
from uuid import uuid4

from graph_features.catalog import catalog
from graph_features.errors import JobCancelledError, JobError, RingfenceError
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.patience import insist
from graph_features.jobs.records import Chunk, ChunkState, Job
from graph_features.jobs.runner import JobContext, heartbeat
from graph_features.jobs.stores import Stores
from graph_features.jobs.work import BLOCKED_WAIT_S, Work, do_chunks, is_over
from graph_features.schema import ViewSchema
from graph_features.settings import JobSettings

log = logging.getLogger(__name__)

LOST_HELPERS = 20
"""So many helpers of a run may die before it goes on without them."""


def run_chunks(context: JobContext, stores: Stores, schemas: Mapping[str, ViewSchema], *, workers: int = 1) -> None:
    """Do every chunk of the job that is not done, with `workers` processes; raise JobError when some failed.

    A failed chunk leaves its error in the ledger and the others go on. Chunks that failed because a store was away are
    tried again, up to the settings' max_attempts. A chunk that an earlier try has written offline is computed again from
    the same records and written online only.
    """
    ledger = context.ledger.chunks
    ledger.reopen(context.job.id)
    planned = ledger.list(context.job.id)
    progress = _Progress(context=context, total=len(planned))
    progress.tell()
    if all(chunk.state is ChunkState.DONE for chunk in planned):
        return
    work = Work.load(stores, schemas, planned)
    context.check()
    for name in sorted({chunk.key.view for chunk in planned} & set(schemas)):
        stores.offline.create_view(schemas[name])
    with Crew(context=context, stores=stores, helpers=min(workers, len(planned)) - 1) as crew:
        for _ in do_chunks(context, work, _claims(context, crew.tend)):
            progress.tell()
    progress.tell()
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


def _claims(context: JobContext, tend: Callable[[], None]) -> Iterator[Chunk]:
    """Yield chunks as they become ours; wait for those whose work another worker has in hand."""
    ledger, patience_s = context.ledger.chunks, context.settings.patience_s

    def claim() -> tuple[Chunk | None, bool]:
        tend()
        chunk = ledger.claim(context.job.id, context.runner)
        if chunk is not None or not is_over(ledger.counts(context.job.id)):
            return chunk, False
        return None, not ledger.reopen(context.job.id, outages_below=context.settings.max_attempts)

    while True:
        context.check()
        chunk, over = insist(claim, patience_s=patience_s, stop=context.stop)
        if over:
            return
        if chunk is None:
            context.stop.wait(BLOCKED_WAIT_S)
        else:
            yield chunk


@dataclass(kw_only=True)
class Crew:
    """Helper processes of one run. One that dies is replaced, and its chunk is free again at once."""

    context: JobContext
    stores: Stores
    helpers: int
    _running: dict[str, BaseProcess] = field(default_factory=dict)
    _lost: int = 0

    def __enter__(self) -> Crew:
        if self.helpers > 0:
            # Not fork: this process holds threads and connections.
            self._processes: Any = multiprocessing.get_context("forkserver")
            self._stop = self._processes.Event()
            for _ in range(self.helpers):
                self._start()
        return self

    def _start(self) -> None:
        context = self.context
        name = f"{context.runner}:helper-{uuid4().hex[:8]}"
        task = pickle.dumps((self.stores, context.ledger, context.job, name, context.settings))
        process = self._processes.Process(target=_help, args=(task, self._stop), name=name, daemon=True)
        process.start()
        self._running[name] = process

    def tend(self) -> None:
        """Replace helpers that died; those that ended by themselves found nothing more to do."""
        for name, process in list(self._running.items()):
            if process.is_alive() or process.exitcode == 0:
                continue
            log.warning("helper %s of job %s died (exit code %s)", name, self.context.job.id, process.exitcode)
            self.context.ledger.chunks.release(self.context.job.id, name)
            del self._running[name]
            self._lost += 1
            if self._lost <= LOST_HELPERS:
                self._start()

    def __exit__(self, *_: object) -> None:
        if not self._running:
            return
        self._stop.set()
        for process in self._running.values():
            process.join(timeout=30)
            if process.is_alive():
                process.kill()
                process.join()


def _help(task: bytes, stop: Any) -> None:
    """The helper process: do chunks of the job until none is left, the runner is gone or it says stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's to hear; it tells us
    stores: Stores
    ledger: Ledger
    job: Job
    settings: JobSettings
    stores, ledger, job, name, settings = pickle.loads(task)  # noqa: S301  came from the parent process just now
    parent = multiprocessing.parent_process()

    def beat() -> bool:
        gone = parent is not None and not parent.is_alive()
        return gone or stop.is_set() or ledger.chunks.beat(job.id, name, attempt=job.attempts)

    with heartbeat(beat, settings.heartbeat_s, name=name) as stopped:
        context = JobContext(job=job, ledger=ledger, runner=name, stop=stopped, settings=settings)
        threading.Thread(target=_pass_on, args=(stop, stopped), daemon=True).start()
        try:
            _work_on(context, stores)
        except JobCancelledError:
            pass
        except RingfenceError as error:
            log.warning("helper %s: %s", name, error)
        finally:
            insist(lambda: ledger.chunks.release(job.id, name), patience_s=settings.patience_s)


def _pass_on(stop: Any, stopped: threading.Event) -> None:
    stop.wait()
    stopped.set()


def _work_on(context: JobContext, stores: Stores) -> None:
    planned = context.ledger.chunks.list(context.job.id)
    work = Work.load(stores, catalog().schemas, planned)
    for _ in do_chunks(context, work, _claims(context, lambda: None)):
        pass
