"""The ledger's ticks and schedules: which tick was had, and what the leading scheduler runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from graph_features.jobs.engine import transaction
from graph_features.jobs.tables import as_dict, schedules, ticks


@dataclass(frozen=True, kw_only=True)
class ScheduleEntry:
    """A scheduled job as its leading scheduler has it; `next_at` is its next tick, `seen_at` when this was true."""

    name: str
    kind: str
    rhythm: str
    next_at: datetime | None
    grace_s: float
    leader: str
    seen_at: datetime

    def late_s(self, now: datetime) -> float:
        """By how many seconds the next tick is overdue; 0 when it is not."""
        return 0.0 if self.next_at is None else max(0.0, (now - self.next_at) / timedelta(seconds=1))


class ScheduleLedger:
    """Ticks and schedules; reached as `ledger.schedules`."""

    def __init__(self, engine: sa.Engine, *, clock: Callable[[], datetime]) -> None:
        self.engine = engine
        self.clock = clock

    def take(self, connection: sa.Connection, schedule: str, tick_at: datetime, job_id: UUID) -> None:
        """Take a tick in the transaction that queues its job; raise IntegrityError when it was had before."""
        values = {"schedule": schedule, "tick_at": tick_at, "job_id": job_id, "created_at": self.clock()}
        connection.execute(ticks.insert().values(values))

    def tick_times(self, schedule: str, *, limit: int = 100) -> Sequence[datetime]:
        """Return the ticks of a schedule that fired, newest first."""
        query = sa.select(ticks.c.tick_at).where(ticks.c.schedule == schedule).order_by(ticks.c.tick_at.desc())
        with transaction(self.engine) as connection:
            return connection.scalars(query.limit(limit)).all()

    def last_ticks(self) -> dict[str, datetime]:
        """Return the newest tick of every schedule that ever fired."""
        query = sa.select(ticks.c.schedule, sa.func.max(ticks.c.tick_at, type_=ticks.c.tick_at.type))
        with transaction(self.engine) as connection:
            return {str(name): moment for name, moment in connection.execute(query.group_by(ticks.c.schedule))}

    def publish(self, entries: Sequence[dict[str, Any]], *, leader: str) -> None:
        """Replace what is known of schedules by the leader's own: name, kind, rhythm, next_at, grace_s of each."""
        now = self.clock()
        rows = [{**entry, "leader": leader, "seen_at": now} for entry in entries]
        with transaction(self.engine) as connection:
            connection.execute(schedules.delete())
            connection.execute(schedules.insert(), rows)

    def entries(self) -> list[ScheduleEntry]:
        """Return every schedule that the last leader ran, the next one due first."""
        query = sa.select(schedules).order_by(schedules.c.next_at, schedules.c.name)
        with transaction(self.engine) as connection:
            return [ScheduleEntry(**as_dict(row)) for row in connection.execute(query)]
