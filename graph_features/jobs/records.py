"""What the ledger hands out: jobs, chunks and their states."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from graph_features.clock import from_ms
from graph_features.errors import JobError


class JobState(StrEnum):
    """queued → running → done, failed, paused or cancelled; the last three can be resumed."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Asked(StrEnum):
    """What a running job was asked to do at its next safe point."""

    CANCEL = "cancel"
    PAUSE = "pause"


class ChunkState(StrEnum):
    """pending → running → offline_committed (offline rows are written) → done (online acknowledged), or failed.

    What is offline_committed never goes back: put down or failed, it comes back for its online write only.
    """

    PENDING = "pending"
    RUNNING = "running"
    OFFLINE_COMMITTED = "offline_committed"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job as the ledger knows it. `due_at` is what it speaks for when its parameters name no time."""

    id: UUID
    kind: str
    parameters: dict[str, Any]
    state: JobState
    requested_by: str
    due_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    runner: str | None
    heartbeat_at: datetime | None
    asked: Asked | None
    attempts: int
    progress_done: int
    progress_total: int | None
    error: str | None

    def check(self) -> Job:
        """Return this job if it is done; raise JobError with its error otherwise."""
        if self.state is not JobState.DONE:
            raise JobError(f"{self.kind} job {self.id} is {self.state}" + (f": {self.error}" if self.error else ""))
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, times in ISO 8601 UTC."""
        data: dict[str, Any] = dict(vars(self))
        data |= {name: value.isoformat() for name, value in data.items() if isinstance(value, datetime)}
        asked = None if self.asked is None else self.asked.value
        return data | {"id": str(self.id), "state": self.state.value, "asked": asked}


@dataclass(frozen=True, kw_only=True)
class ChunkKey:
    """One piece of a job: a view's rows for a range [start_ms, end_ms), or for the slice at start_ms = end_ms.

    `partition` of `partitions` takes part of the accounts. `source_seq` is the ingest sequence up to which records are
    read, so that every try computes the same rows.
    """

    view: str
    view_hash: str
    start_ms: int
    end_ms: int
    source_seq: int
    partition: int = 0
    partitions: int = 1

    @property
    def is_slice(self) -> bool:
        return self.start_ms == self.end_ms

    def part(self) -> str:
        """The name of the offline rows, the same for every try."""
        return f"{self.view}-{self.start_ms}-{self.end_ms}-{self.partition}of{self.partitions}-{self.view_hash}"

    def __str__(self) -> str:
        when = f"{from_ms(self.start_ms):%Y-%m-%dT%H:%M:%SZ}"
        span = f"at {when}" if self.is_slice else f"from {when} to {from_ms(self.end_ms):%Y-%m-%dT%H:%M:%SZ}"
        return f"{self.view} {span}" + (f" ({self.partition + 1}/{self.partitions})" if self.partitions > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A planned piece with its state. `offline_at` is set once its offline rows are complete."""

    id: int
    job_id: UUID
    position: int
    key: ChunkKey
    state: ChunkState
    attempts: int
    runner: str | None
    heartbeat_at: datetime | None
    claimed_at: datetime | None
    offline_at: datetime | None
    offline_name: str | None
    finished_at: datetime | None
    rows: int
    compute_s: float
    offline_s: float
    online_s: float
    online_epoch: str | None
    error: str | None
    outage: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, times in ISO 8601 UTC."""
        key = self.key
        return {
            "view": key.view,
            "view_hash": key.view_hash,
            "from": from_ms(key.start_ms).isoformat(),
            "to": from_ms(key.end_ms).isoformat(),
            "partition": key.partition,
            "partitions": key.partitions,
            "source_seq": key.source_seq,
            "state": self.state.value,
            "attempts": self.attempts,
            "worker": self.runner,
            "rows": self.rows,
            "seconds": {"compute": self.compute_s, "offline": self.offline_s, "online": self.online_s},
            "error": self.error,
            "finished_at": self.finished_at.isoformat() if self.finished_at else None,
        }
