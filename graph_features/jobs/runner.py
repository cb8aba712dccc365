"""Runs jobs: on demand (REST, CLI) and for the scheduler. What a kind does is handed in by name."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict

from graph_features.errors import InvalidInputError, JobCancelledError, RingfenceError, StoreUnavailableError
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.parameters import Parameters, parse
from graph_features.jobs.patience import insist
from graph_features.jobs.records import Asked, Job, JobState
from graph_features.settings import JobSettings

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""progress(done, total); total is None while unknown."""


class AnyParameters(BaseModel):
    """Whatever comes."""

    model_config = ConfigDict(extra="allow", frozen=True)


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """What a job sees while it runs."""

    job: Job
    ledger: Ledger
    runner: str
    stop: threading.Event
    """Set when the job should end soon: it was cancelled, or its process is shutting down."""
    on_progress: Progress | None = None
    settings: JobSettings = field(default_factory=JobSettings)

    @property
    def due_at(self) -> datetime:
        """The instant that the job speaks for when its parameters name none."""
        return self.job.due_at

    def parameters(self, model: type[Parameters]) -> Parameters:
        """The job's parameters as `model`; raise InvalidInputError."""
        return parse(model, self.job.parameters)

    def check(self) -> None:
        """Raise JobCancelledError when the job should stop; long work calls this wherever stopping does no damage."""
        if self.stop.is_set():
            raise JobCancelledError(f"{self.job.kind} job {self.job.id} was asked to stop")

    def progress(self, done: int, total: int | None) -> None:
        """Record how far the job is, and tell whoever watches."""
        try:
            self.ledger.progress(self.job.id, done, total)
        except StoreUnavailableError as error:
            log.warning("progress of job %s not recorded: %s", self.job.id, error)  # its chunks are the truth
        if self.on_progress is not None:
            self.on_progress(done, total)


Handler = Callable[[JobContext], None]


@dataclass(frozen=True, kw_only=True)
class JobKind:
    """A kind of job: what it does, in one sentence, the parameters that it takes, and the function that does it."""

    run: Handler
    parameters: type[BaseModel] = AnyParameters
    description: str = ""


def kinds_of(handlers: Mapping[str, Handler | JobKind]) -> dict[str, JobKind]:
    """Give plain functions a kind that takes any parameters."""
    return {
        name: handler if isinstance(handler, JobKind) else JobKind(run=handler) for name, handler in handlers.items()
    }


@dataclass(kw_only=True)
class JobRunner:
    """Queues, runs, cancels and shows jobs. One per process; threads may share it."""

    ledger: Ledger
    handlers: Mapping[str, Handler | JobKind]
    settings: JobSettings = field(default_factory=JobSettings)
    threads: int = 2
    name: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}")
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.kinds = kinds_of(self.handlers)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="ringfence-job")

    def check_parameters(self, kind: str, parameters: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
        """Return the parameters as they go into the ledger; raise InvalidInputError naming the field, after `where`."""
        model = parse(self._kind(kind, where).parameters, parameters, where=where)
        return model.model_dump(mode="json", by_alias=True, exclude_none=True)

    def _kind(self, name: str, where: str = "") -> JobKind:
        if name not in self.kinds:
            known = ", ".join(sorted(self.kinds))
            raise InvalidInputError(field=f"{where}kind", expected=f"one of {known}", got=name)
        return self.kinds[name]

    def submit(self, kind: str, parameters: Mapping[str, Any], *, requested_by: str = "user") -> UUID:
        """Queue a job and return its id; raise InvalidInputError. `run` or `start` runs it."""
        return self.ledger.submit(kind, self.check_parameters(kind, parameters), requested_by=requested_by)

    def start(self, job_id: UUID, *, resume: bool = False) -> Future[Job]:
        """Run a job in the background; its end is in the ledger and in the future."""
        return self._pool.submit(self.run, job_id, resume=resume)

    def run(self, job_id: UUID, *, resume: bool = False, progress: Progress | None = None) -> Job:
        """Run a job here and return it as it ended: done, paused, cancelled or failed (`error` says why).

        Ctrl-C cancels it and goes on up. A job that is stopped by `close` goes back to queued. With `resume` a failed,
        paused or cancelled job runs again. Raises JobError when the job cannot be run (running elsewhere, ended).
        """
        handler = self._kind(self.ledger.get(job_id).kind)
        # Each run has a name of its own: a second run in this process must not pass for the first.
        runner = f"{self.name}:{uuid4().hex[:8]}"
        job = self.ledger.claim(job_id, runner, resume=resume)
        with heartbeat(
            lambda: self.ledger.beat(job_id, runner),
            self.settings.heartbeat_s,
            name=str(job_id),
            stopping=self.stopping,
        ) as stop:
            context = JobContext(
                job=job, ledger=self.ledger, runner=runner, stop=stop, on_progress=progress, settings=self.settings
            )
            state, error = self._outcome(handler, context)
            # Still beating: while the ledger is away, the job stays ours for as long as its heartbeat does not expire.
            return self._finish(context, state, error)

    def _finish(self, context: JobContext, state: JobState, error: str | None = None) -> Job:
        return insist(
            lambda: self.ledger.finish(context.job.id, context.runner, state, error=error),
            patience_s=self.settings.patience_s,
        )

    def _outcome(self, kind: JobKind, context: JobContext) -> tuple[JobState, str | None]:
        job = context.job
        try:
            kind.run(context)
        except JobCancelledError:
            return self._stopped(context), None
        except RingfenceError as error:
            log.warning("%s job %s failed: %s", job.kind, job.id, error)
            return JobState.FAILED, str(error)
        except Exception as error:  # the supervisor: whatever a job raises has to end up in its row
            log.exception("%s job %s failed", job.kind, job.id)
            return JobState.FAILED, f"{type(error).__name__}: {error}"
        except BaseException:
            with suppress(RingfenceError):  # without the ledger the heartbeat expires, which says the same
                self.ledger.finish(job.id, context.runner, JobState.CANCELLED)
            raise
        return JobState.DONE, None

    def _stopped(self, context: JobContext) -> JobState:
        if self.stopping.is_set():
            return JobState.QUEUED
        asked = insist(lambda: self.ledger.get(context.job.id).asked, patience_s=self.settings.patience_s)
        return JobState.PAUSED if asked is Asked.PAUSE else JobState.CANCELLED

    def cancel(self, job_id: UUID) -> Job:
        """Cancel a job; one that runs stops at its next safe point, within seconds."""
        return self.ledger.cancel(job_id)

    def pause(self, job_id: UUID) -> Job:
        """Pause a job; one that runs stops at its next safe point, and resuming it does the rest."""
        return self.ledger.pause(job_id)

    def get(self, job_id: UUID) -> Job:
        return self.ledger.get(job_id)

    def list(self, *, limit: int = 100) -> list[Job]:
        return self.ledger.list(limit=limit)

    def close(self) -> None:
        """Ask running jobs to stop, wait until they have put down their work, and take no more."""
        self.stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def heartbeat(
    beat: Callable[[], bool], every_s: float, *, name: str, stopping: threading.Event | None = None
) -> Iterator[threading.Event]:
    """Call `beat` every `every_s`; the event that is yielded is set when it returns true or `stopping` is set."""
    stop, ended = threading.Event(), threading.Event()
    step_s = min(every_s, 0.2)

    def go_on() -> None:
        since_s = 0.0
        while not ended.wait(step_s):
            if stopping is not None and stopping.is_set():
                stop.set()
            since_s += step_s
            if since_s < every_s:
                continue
            since_s = 0.0
            try:
                if beat():
                    stop.set()
            except StoreUnavailableError as error:
                # One missed beat is no death; if the ledger stays away, the job's own writes to it will fail.
                log.warning("heartbeat of %s: %s", name, error)

    thread = threading.Thread(target=go_on, name=f"heartbeat-{name}", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        ended.set()
        thread.join()
