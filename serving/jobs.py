"""Jobs on demand: queued in the ledger here, run in a worker process of their own."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from graph_features.errors import JobError
from graph_features.jobs.estimates import Progress, progress_of
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.ledger import Ledger, open_ledger
from graph_features.jobs.records import Job
from graph_features.jobs.runner import JobKind, JobRunner
from graph_features.jobs.status import PlatformStatus, platform_status
from graph_features.jobs.stores import Stores as JobStores
from graph_features.lazy_stores import LazyStores
from graph_features.settings import JobSettings, PlatformSettings, load
from serving.api import JobKind as ApiJobKind
from serving.job_metrics import JobCollector
from serving.pool import Pool

log = logging.getLogger("ringfence.serving.jobs")

REQUESTER = "rest"
"""What `requested_by` says of jobs that came over REST, whichever server took them."""

JOB_TIMEOUT_S = 7 * 86_400.0
"""A job ends by itself or is cancelled; this only keeps a hung one from holding its worker for ever."""


class Jobs:
    """Submits jobs and has them run elsewhere; the worker process starts with the first job."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        kinds: Mapping[str, JobKind],
        open_pool: Callable[[], Pool],
        stores: JobStores | None = None,
    ) -> None:
        self._ledger = ledger
        self._stores = stores
        self._runner = JobRunner(ledger=ledger, handlers=dict(kinds))
        self._open_pool = open_pool
        self._pool: Pool | None = None
        self._lock = threading.Lock()
        self._mine: set[UUID] = set()

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the ledger answers."""
        self._ledger.ping()

    def status(self) -> PlatformStatus | None:
        """The state of jobs, schedules and views; None without stores to ask. Raises StoreUnavailableError."""
        return None if self._stores is None else platform_status(self._ledger, self._stores)

    def collector(self) -> JobCollector | None:
        """The same for Prometheus."""
        stores = self._stores
        return None if stores is None else JobCollector(lambda: platform_status(self._ledger, stores))

    def kinds(self) -> list[ApiJobKind]:
        """The kinds that can be asked for."""
        return [
            ApiJobKind(kind=name, description=kind.description, parameters=kind.parameters.model_json_schema())
            for name, kind in self._runner.kinds.items()
        ]

    def submit(self, kind: str, parameters: Mapping[str, Any]) -> Job:
        """Queue a job and have it run; raise InvalidInputError."""
        job_id = self._runner.submit(kind, parameters, requested_by=REQUESTER)
        self._start(job_id)
        return self._runner.get(job_id)

    def adopt(self) -> list[UUID]:
        """Have jobs run that were asked for over REST and that nobody has in hand; return them.

        They wait because the server that took them has ended or is busy, or their runner died.
        """
        found = [job_id for job_id in self._ledger.abandoned(requested_by=REQUESTER) if job_id not in self._mine]
        for job_id in found:
            log.info("job taken up", extra={"job": str(job_id)})
            self._start(job_id)
        return found

    def _start(self, job_id: UUID) -> None:
        with self._lock:
            if self._pool is None:
                self._pool = self._open_pool()
            self._mine.add(job_id)
        future = self._pool.submit("run", job_id, timeout_s=JOB_TIMEOUT_S)
        future.add_done_callback(lambda done: self._ended(job_id, done))

    def _ended(self, job_id: UUID, future: Any) -> None:
        self._mine.discard(job_id)
        if not future.cancelled() and (error := future.exception()) is not None:
            log.warning("job not run to its end", extra={"error": str(error)})

    def get(self, job_id: UUID) -> Job:
        """A job; raise UnknownJobError."""
        return self._runner.get(job_id)

    def list(self, *, limit: int) -> list[Job]:
        """Jobs, newest first."""
        return self._runner.list(limit=limit)

    def cancel(self, job_id: UUID) -> Job:
        """Cancel a job; one that runs stops at its next safe point."""
        return self._runner.cancel(job_id)

    def pause(self, job_id: UUID) -> Job:
        """Pause a job; one that runs stops at its next safe point."""
        return self._runner.pause(job_id)

    def resume(self, job_id: UUID) -> Job:
        """Queue a paused, failed or cancelled job again and have it run; raise JobError for another."""
        self._ledger.requeue(job_id)
        self._start(job_id)
        return self._runner.get(job_id)

    def progress(self, job_id: UUID) -> Progress:
        """Where a job's chunks stand, with the failed ones and an estimate of the time to the end."""
        return progress_of(self._ledger, job_id)

    def close(self) -> None:
        """End the worker; a job that it holds goes on where it stopped when it is resumed."""
        if self._pool is not None:
            self._pool.close()
        self._runner.close()
        self._ledger.close()


class JobWorker:
    """The handler of the job process: runs one job at a time."""

    def __init__(self, platform: PlatformSettings, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._stores = LazyStores(platform)
        self._ledger = open_ledger(platform)
        self._runner = JobRunner(
            ledger=self._ledger, handlers=dict(feature_kinds(self._stores)), settings=load(JobSettings)
        )

    def run(self, job_id: UUID) -> str:
        """Run a queued job; return the state it ended in."""
        try:
            return str(self._runner.run(job_id).state)
        except JobError as error:
            # Cancelled while it was queued, or taken by another process: not this worker's to run.
            return str(error)

    def close(self) -> None:
        """Close ledger and stores."""
        self._runner.close()
        self._ledger.close()
        self._stores.close()
