"""The ledger's chunks: claimed by one runner at a time, finished exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from graph_features.errors import JobError
from graph_features.jobs.engine import transaction
from graph_features.jobs.records import Chunk, ChunkKey, ChunkState
from graph_features.jobs.tables import as_dict, chunks

_KEY = ("view", "view_hash", "start_ms", "end_ms", "source_seq", "partition", "partitions")
_WORK = ("view", "start_ms", "end_ms", "partition", "partitions")

# Where a chunk goes back to when nobody works on it: what has been written offline is not written again.
_RESTING = sa.case((chunks.c.offline_at.is_not(None), ChunkState.OFFLINE_COMMITTED), else_=ChunkState.PENDING)


class ChunkLedger:
    """Chunks of all jobs; reached as `ledger.chunks`."""

    def __init__(self, engine: sa.Engine, *, clock: Callable[[], datetime], expiry: timedelta) -> None:
        self.engine = engine
        self.clock = clock
        self.expiry = expiry

    def plan(self, job_id: UUID, keys: Sequence[ChunkKey]) -> None:
        """Add the chunks of a job, in this order; those it has already stay as they are."""
        if not keys:
            return
        insert = postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert
        rows = [{"job_id": job_id, "position": position, **asdict(key)} for position, key in enumerate(keys)]
        with transaction(self.engine) as connection:
            connection.execute(insert(chunks).on_conflict_do_nothing(), rows)

    def list(self, job_id: UUID) -> list[Chunk]:
        """Return a job's chunks in their order."""
        query = sa.select(chunks).where(chunks.c.job_id == job_id).order_by(chunks.c.position)
        with transaction(self.engine) as connection:
            return [_chunk(row) for row in connection.execute(query)]

    def counts(self, job_id: UUID) -> dict[ChunkState, int]:
        """Return how many of a job's chunks are in each state."""
        query = sa.select(chunks.c.state, sa.func.count()).where(chunks.c.job_id == job_id).group_by(chunks.c.state)
        with transaction(self.engine) as connection:
            found = {ChunkState(state): int(count) for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in ChunkState}

    def reopen(self, job_id: UUID) -> int:
        """Make a job's failed chunks claimable again; return how many."""
        failed = (chunks.c.job_id == job_id) & (chunks.c.state == ChunkState.FAILED)
        with transaction(self.engine) as connection:
            return connection.execute(chunks.update().where(failed).values(state=_RESTING)).rowcount

    def claim(self, job_id: UUID, runner: str) -> Chunk | None:
        """Take the job's next chunk whose work nobody has in hand, in this job or another; None if there is none.

        A chunk that was written offline comes back with `offline_at` set: it has to be written online only.
        """
        for _ in range(3):
            try:
                with transaction(self.engine) as connection:
                    self._bury(connection)
                    return self._claim(connection, job_id, runner)
            except IntegrityError:
                continue  # another job has just taken the same work: the index said no, so look further
        return None

    def _bury(self, connection: sa.Connection) -> None:
        """Put down what dead runners held, so that it neither waits for ever nor blocks the same work elsewhere."""
        dead = chunks.c.runner.is_not(None) & (chunks.c.heartbeat_at < self.clock() - self.expiry)
        connection.execute(chunks.update().where(dead).values(state=_RESTING, runner=None, heartbeat_at=None))

    def _claim(self, connection: sa.Connection, job_id: UUID, runner: str) -> Chunk | None:
        other = chunks.alias("other")
        same = [other.c[name] == chunks.c[name] for name in _WORK]
        at_work = sa.exists().where(*same, other.c.runner.is_not(None))
        free = (
            sa.select(chunks.c.id)
            .where(
                chunks.c.job_id == job_id,
                chunks.c.state.in_((ChunkState.PENDING, ChunkState.OFFLINE_COMMITTED)),
                chunks.c.runner.is_(None),
                ~at_work,
            )
            .order_by(chunks.c.position)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        chunk_id = connection.scalar(free)
        if chunk_id is None:
            return None
        taken = chunks.update().where(chunks.c.id == chunk_id)
        values = {
            "state": ChunkState.RUNNING,
            "runner": runner,
            "heartbeat_at": self.clock(),
            "attempts": chunks.c.attempts + 1,
            "error": None,
        }
        row = connection.execute(taken.values(values).returning(*chunks.c)).one()
        return _chunk(row)

    def offline_committed(self, chunk: Chunk, *, rows: int) -> None:
        """Record that the chunk's `rows` offline rows are complete; the online write follows."""
        now = self.clock()
        self._move(chunk, state=ChunkState.OFFLINE_COMMITTED, offline_at=now, heartbeat_at=now, rows=rows)

    def done(self, chunk: Chunk) -> None:
        """Record that the online store has acknowledged the chunk too."""
        self._move(chunk, state=ChunkState.DONE, finished_at=self.clock(), runner=None, heartbeat_at=None)

    def failed(self, chunk: Chunk, error: str) -> None:
        """Record why the chunk failed."""
        self._move(chunk, state=ChunkState.FAILED, error=error, runner=None, heartbeat_at=None)

    def _move(self, chunk: Chunk, **values: Any) -> None:
        held = chunks.update().where(chunks.c.id == chunk.id, chunks.c.runner == chunk.runner)
        with transaction(self.engine) as connection:
            if connection.execute(held.values(values)).rowcount != 1:
                raise JobError(f"chunk {chunk.key} was taken over while {chunk.runner} was not heard of")

    def put_down(self, connection: sa.Connection, job_id: UUID, runner: str) -> None:
        """Make claimable what `runner` still holds of a job."""
        held = (chunks.c.job_id == job_id) & (chunks.c.runner == runner)
        connection.execute(chunks.update().where(held).values(state=_RESTING, runner=None, heartbeat_at=None))


def _chunk(row: sa.Row[Any]) -> Chunk:
    data = as_dict(row)
    key = ChunkKey(**{name: data.pop(name) for name in _KEY})
    return Chunk(key=key, **data | {"state": ChunkState(data["state"])})
