"""Jobs on demand: queued in the ledger here, run in a worker process of their own."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from graph_features.errors import JobError
from graph_features.jobs.kinds import feature_kinds
from graph_features.jobs.ledger import Ledger, open_ledger
from graph_features.jobs.records import Job
from graph_features.jobs.runner import JobKind, JobRunner
from graph_features.lazy_stores import LazyStores
from graph_features.settings import PlatformSettings
from serving.api import JobKind as ApiJobKind
from serving.pool import Pool

log = logging.getLogger("ringfence.serving.jobs")

JOB_TIMEOUT_S = 7 * 86_400.0
"""A job ends by itself or is cancelled; this only keeps a hung one from holding its worker for ever."""


class Jobs:
    """Submits jobs and has them run elsewhere; the worker process starts with the first job."""

    def __init__(self, *, ledger: Ledger, kinds: Mapping[str, JobKind], open_pool: Callable[[], Pool]) -> None:
        self._ledger = ledger
        self._runner = JobRunner(ledger=ledger, handlers=dict(kinds))
        self._open_pool = open_pool
        self._pool: Pool | None = None
        self._lock = threading.Lock()

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the ledger answers."""
        self._ledger.ping()

    def kinds(self) -> list[ApiJobKind]:
        """The kinds that can be asked for."""
        return [
            ApiJobKind(kind=name, description=kind.description, parameters=kind.parameters.model_json_schema())
            for name, kind in self._runner.kinds.items()
        ]

    def submit(self, kind: str, parameters: Mapping[str, Any]) -> Job:
        """Queue a job and have it run; raise InvalidInputError."""
        job_id = self._runner.submit(kind, parameters, requested_by="rest")
        with self._lock:
            if self._pool is None:
                self._pool = self._open_pool()
        self._pool.submit("run", job_id, timeout_s=JOB_TIMEOUT_S).add_done_callback(_log_failure)
        return self._runner.get(job_id)

    def get(self, job_id: UUID) -> Job:
        """A job; raise UnknownJobError."""
        return self._runner.get(job_id)

    def list(self, *, limit: int) -> list[Job]:
        """Jobs, newest first."""
        return self._runner.list(limit=limit)

    def cancel(self, job_id: UUID) -> Job:
        """Cancel a job; one that runs stops at its next safe point."""
        return self._runner.cancel(job_id)

    def close(self) -> None:
        """End the worker; a job that it holds goes on where it stopped when it is resumed."""
        if self._pool is not None:
            self._pool.close()
        self._runner.close()
        self._ledger.close()


def _log_failure(future: Any) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("job not run to its end", extra={"error": str(error)})


class JobWorker:
    """The handler of the job process: runs one job at a time."""

    def __init__(self, platform: PlatformSettings, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._stores = LazyStores(platform)
        self._ledger = open_ledger(platform)
        self._runner = JobRunner(ledger=self._ledger, handlers=dict(feature_kinds(self._stores)))

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
