"""What the offline store holds of each view, from which code and records: so that stale slices are known by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from graph_features.jobs.engine import transaction
from graph_features.jobs.records import ChunkKey
from graph_features.jobs.tables import as_dict, coverage

_KEY = ("view", "start_ms", "end_ms", "partition", "partitions")


@dataclass(frozen=True, kw_only=True)
class Covered:
    """One slice (start_ms = end_ms = as_of) or range of a view as it was last written.

    `late` says that records came after `source_seq` which change its rows; they were looked for up to `checked_seq`.
    """

    view: str
    start_ms: int
    end_ms: int
    partition: int
    partitions: int
    view_hash: str
    source_seq: int
    rows: int
    written_at: datetime
    checked_seq: int
    late: bool

    @property
    def is_slice(self) -> bool:
        return self.start_ms == self.end_ms


def covered(engine: sa.Engine, key: ChunkKey, *, rows: int, now: datetime) -> Sequence[sa.Executable]:
    """Return the statements that record a chunk's rows as the newest of their range."""
    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    values = {
        "view_hash": key.view_hash,
        "source_seq": key.source_seq,
        "rows": rows,
        "written_at": now,
        "checked_seq": key.source_seq,
        "late": False,
    }
    statement = insert(coverage).values({name: getattr(key, name) for name in _KEY} | values)
    return [statement.on_conflict_do_update(index_elements=list(_KEY), set_=values)]


class CoverageLedger:
    """What was written; reached as `ledger.coverage`."""

    def __init__(self, engine: sa.Engine, *, clock: Callable[[], datetime]) -> None:
        self.engine = engine
        self.clock = clock

    def list(self, views: Iterable[str] | None = None) -> list[Covered]:
        """Return what is covered, by view and time."""
        query = sa.select(coverage).order_by(coverage.c.view, coverage.c.start_ms, coverage.c.partition)
        if views is not None:
            query = query.where(coverage.c.view.in_(list(views)))
        with transaction(self.engine) as connection:
            return [Covered(**as_dict(row)) for row in connection.execute(query)]

    def newest_slices(self) -> dict[str, int]:
        """Return the as_of of each slice view's newest slice, in epoch milliseconds."""
        is_slice = coverage.c.start_ms == coverage.c.end_ms
        query = sa.select(coverage.c.view, sa.func.max(coverage.c.start_ms)).where(is_slice).group_by(coverage.c.view)
        with transaction(self.engine) as connection:
            return {str(view): int(as_of_ms) for view, as_of_ms in connection.execute(query)}

    def replace_ranges(self, view: str, *, start_ms: int, end_ms: int, partitions: int) -> None:
        """Forget ranges of an event view that a finished one contains: all of their rows were written anew."""
        inside = (coverage.c.start_ms >= start_ms) & (coverage.c.end_ms <= end_ms)
        itself = (
            (coverage.c.start_ms == start_ms) & (coverage.c.end_ms == end_ms) & (coverage.c.partitions == partitions)
        )
        gone = (coverage.c.view == view) & (coverage.c.start_ms < coverage.c.end_ms) & inside & ~itself
        with transaction(self.engine) as connection:
            connection.execute(coverage.delete().where(gone))

    def checked_from(self, views: Iterable[str]) -> tuple[int, int] | None:
        """Return (after_seq, before_ms): only records later than the one and earlier than the other can be late."""
        query = sa.select(sa.func.min(coverage.c.checked_seq), sa.func.max(coverage.c.start_ms)).where(
            coverage.c.view.in_(list(views)), coverage.c.start_ms == coverage.c.end_ms, ~coverage.c.late
        )
        with transaction(self.engine) as connection:
            after_seq, before_ms = connection.execute(query).one()
        return None if after_seq is None else (int(after_seq), int(before_ms))

    def mark_late(self, view: str, changes: pa.Table, *, up_to_seq: int) -> int:
        """Mark the slices of a view that records change which came after them; return how many were marked.

        `changes` has int64 columns seq and known_ms, ascending by seq: every record that lies after the slices'
        checked_seq, up to `up_to_seq`, and before the newest of them.
        """
        slices = [one for one in self.list([view]) if one.is_slice and not one.late and one.checked_seq < up_to_seq]
        if not slices:
            return 0
        seq, known_ms = (changes[name].to_numpy() for name in ("seq", "known_ms"))
        # The earliest instant among all records from here to the end.
        earliest = np.minimum.accumulate(known_ms[::-1])[::-1] if len(known_ms) else known_ms
        updates: list[dict[str, Any]] = []
        for one in slices:
            first = int(np.searchsorted(seq, one.checked_seq, side="right"))
            late = first < len(seq) and int(earliest[first]) < one.start_ms
            key = {f"b_{name}": getattr(one, name) for name in _KEY}
            updates.append({**key, "b_seq": one.source_seq, "b_checked": up_to_seq, "b_late": late})
        same = [coverage.c[name] == sa.bindparam(f"b_{name}") for name in _KEY]
        # A slice that was written meanwhile has another source_seq and is left alone.
        update = (
            coverage.update()
            .where(*same, coverage.c.source_seq == sa.bindparam("b_seq"))
            .values(checked_seq=sa.bindparam("b_checked"), late=sa.bindparam("b_late"))
        )
        with transaction(self.engine) as connection:
            connection.execute(update, updates)
        return sum(bool(update["b_late"]) for update in updates)

    def touch(self, views: Iterable[str], *, after_ms: int) -> int:
        """Mark the slices at or after an instant as changed, whatever the reason; return how many."""
        touched = (coverage.c.view.in_(list(views))) & (coverage.c.start_ms == coverage.c.end_ms)
        with transaction(self.engine) as connection:
            return connection.execute(
                coverage.update().where(touched, coverage.c.start_ms > after_ms, ~coverage.c.late).values(late=True)
            ).rowcount

    def forget_before(self, before_ms: int) -> int:
        """Forget slices whose rows retention has removed; return how many."""
        gone = (coverage.c.start_ms == coverage.c.end_ms) & (coverage.c.start_ms < before_ms)
        with transaction(self.engine) as connection:
            return connection.execute(coverage.delete().where(gone)).rowcount
