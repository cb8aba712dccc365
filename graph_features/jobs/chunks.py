"""The ledger's chunks: claimed by one worker at a time, finished exactly once.

States and moves are drawn in docs/jobs.md. Every move names the worker that makes it and fails when the chunk is not
its own any more: whoever was thought dead and wakes up can change nothing.
"""

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
from graph_features.jobs.coverage import covered
from graph_features.jobs.engine import execute_in, same_database, transaction
from graph_features.jobs.records import Chunk, ChunkKey, ChunkState
from graph_features.jobs.tables import as_dict, chunks, jobs
from graph_features.stores.base import Written

_KEY = ("view", "view_hash", "start_ms", "end_ms", "source_seq", "partition", "partitions")
_WORK = ("view", "start_ms", "end_ms", "partition", "partitions")

# Where a chunk goes back to when nobody works on it: what has been written offline is not written again.
_RESTING = sa.case((chunks.c.offline_at.is_not(None), ChunkState.OFFLINE_COMMITTED), else_=ChunkState.PENDING)
_NOBODY = {"state": _RESTING, "runner": None, "heartbeat_at": None}


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

    def reopen(self, job_id: UUID, *, outages_below: int | None = None) -> int:
        """Make a job's failed chunks claimable again; return how many.

        With `outages_below` only those that failed because a store was away, in fewer attempts of this run than that.
        """
        failed = (chunks.c.job_id == job_id) & (chunks.c.state == ChunkState.FAILED)
        if outages_below is not None:
            failed &= chunks.c.outage & (chunks.c.tries < outages_below)
        else:
            with transaction(self.engine) as connection:
                connection.execute(chunks.update().where(chunks.c.job_id == job_id).values(tries=0))
        with transaction(self.engine) as connection:
            return connection.execute(chunks.update().where(failed).values(state=_RESTING)).rowcount

    def claim(self, job_id: UUID, runner: str) -> Chunk | None:
        """Take the job's next chunk whose work nobody has in hand, in this job or another; None if there is none.

        A chunk that was written offline comes back as `offline_committed`: it has to be written online only.
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
        """Put down what dead workers held, so that it neither waits for ever nor blocks the same work elsewhere."""
        unheard = chunks.c.runner.is_not(None) & (chunks.c.heartbeat_at < self.clock() - self.expiry)
        dead = sa.select(chunks.c.id).where(unheard).with_for_update(skip_locked=True)
        connection.execute(chunks.update().where(chunks.c.id.in_(dead)).values(_NOBODY))

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
        now = self.clock()
        state = sa.case((chunks.c.offline_at.is_(None), ChunkState.RUNNING), else_=ChunkState.OFFLINE_COMMITTED)
        taken = (
            chunks.update()
            .where(chunks.c.id == chunk_id)
            .values(
                state=state,
                runner=runner,
                heartbeat_at=now,
                claimed_at=now,
                attempts=chunks.c.attempts + 1,
                tries=chunks.c.tries + 1,
                error=None,
                outage=False,
            )
        )
        return _chunk(connection.execute(taken.returning(*chunks.c)).one())

    def offline_committed(
        self, chunk: Chunk, written: Written, *, compute_s: float = 0.0, offline_s: float = 0.0
    ) -> None:
        """Record that the chunk's offline rows are complete; the online write follows.

        Where the rows are in the ledger's own database, the record joins the transaction that writes them: either both
        are there or none is. Raises JobError, which takes the rows back, when the chunk is not ours any more.
        """
        now = self.clock()
        move = self._moved(
            chunk,
            state=ChunkState.OFFLINE_COMMITTED,
            offline_at=now,
            offline_name=written.name,
            heartbeat_at=now,
            rows=written.rows,
            compute_s=compute_s,
            offline_s=offline_s,
        )
        record = covered(self.engine, chunk.key, rows=written.rows, now=now)
        if written.connection is not None and same_database(self.engine, written.connection):
            _must_be_ours(chunk, execute_in(written.connection, self.engine, move))
            for statement in record:
                execute_in(written.connection, self.engine, statement)
            return
        with transaction(self.engine) as connection:
            _must_be_ours(chunk, connection.execute(move).rowcount)
            for statement in record:
                connection.execute(statement)

    def done(self, chunk: Chunk, *, online_s: float = 0.0, epoch: str = "") -> None:
        """Record that the online store, in this life of it, has acknowledged the chunk too."""
        values = {"finished_at": self.clock(), "online_s": online_s, "online_epoch": epoch}
        self._move(chunk, state=ChunkState.DONE, runner=None, heartbeat_at=None, **values)

    def failed(self, chunk: Chunk, error: str, *, outage: bool = False) -> None:
        """Record why the chunk failed; `outage` says that a store was away and the work itself is sound."""
        self._move(chunk, state=ChunkState.FAILED, error=error, outage=outage, runner=None, heartbeat_at=None)

    def replay_lost(self, job_id: UUID, *, epoch: str) -> int:
        """Have done chunks written online again that an earlier life of the online store acknowledged; return how many.

        It may have lost them with its memory. Offline nothing is written again.
        """
        lost = (chunks.c.job_id == job_id) & (chunks.c.state == ChunkState.DONE) & (chunks.c.online_epoch != epoch)
        again = {"state": ChunkState.OFFLINE_COMMITTED, "finished_at": None, "online_epoch": None}
        with transaction(self.engine) as connection:
            return connection.execute(chunks.update().where(lost).values(again)).rowcount

    def is_superseded(self, chunk: Chunk, *, epoch: str = "") -> bool:
        """Whether a later slice of the same view and job is online already, so that these rows would be refused there.

        Every account of a slice is in each later slice of the same records.
        """
        if not chunk.key.is_slice:
            return False
        later = (
            (chunks.c.job_id == chunk.job_id)
            & (chunks.c.view == chunk.key.view)
            & (chunks.c.source_seq == chunk.key.source_seq)
            & (chunks.c.start_ms > chunk.key.start_ms)
            & (chunks.c.start_ms == chunks.c.end_ms)
            & (chunks.c.online_epoch == epoch)
        )
        with transaction(self.engine) as connection:
            return connection.scalar(sa.select(chunks.c.id).where(later).limit(1)) is not None

    def _moved(self, chunk: Chunk, **values: Any) -> sa.Update:
        return chunks.update().where(chunks.c.id == chunk.id, chunks.c.runner == chunk.runner).values(values)

    def _move(self, chunk: Chunk, **values: Any) -> None:
        with transaction(self.engine) as connection:
            _must_be_ours(chunk, connection.execute(self._moved(chunk, **values)).rowcount)

    def beat(self, job_id: UUID, runner: str, *, attempt: int) -> bool:
        """Say that a helper of a job lives; return whether it should stop.

        It should when the job was asked to stop, is not running, or is in the hands of a later runner.
        """
        now = self.clock()
        query = sa.select(jobs.c.asked).where(
            jobs.c.id == job_id,
            jobs.c.attempts == attempt,
            jobs.c.heartbeat_at >= now - self.expiry,
        )
        with transaction(self.engine) as connection:
            self.heard(connection, job_id, runner, now)
            found = connection.execute(query).one_or_none()
        return found is None or found.asked is not None

    def heard(self, connection: sa.Connection, job_id: UUID, runner: str, now: datetime) -> None:
        """Renew the heartbeat of what a worker has in hand."""
        mine = (chunks.c.job_id == job_id) & (chunks.c.runner == runner)
        connection.execute(chunks.update().where(mine).values(heartbeat_at=now))

    def put_down(self, connection: sa.Connection, job_id: UUID, runner: str) -> None:
        """Make claimable what `runner` still holds of a job."""
        held = (chunks.c.job_id == job_id) & (chunks.c.runner == runner)
        connection.execute(chunks.update().where(held).values(_NOBODY))

    def release(self, job_id: UUID, runner: str) -> None:
        """`put_down` in a transaction of its own, for a worker that is known to have ended."""
        with transaction(self.engine) as connection:
            self.put_down(connection, job_id, runner)


def _must_be_ours(chunk: Chunk, rowcount: int) -> None:
    if rowcount != 1:
        raise JobError(f"chunk {chunk.key} was taken over while {chunk.runner} was not heard of")


def _chunk(row: sa.Row[Any]) -> Chunk:
    data = as_dict(row)
    key = ChunkKey(**{name: data.pop(name) for name in _KEY})
    del data["tries"]
    return Chunk(key=key, **data | {"state": ChunkState(data["state"])})
