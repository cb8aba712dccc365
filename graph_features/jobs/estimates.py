"""How long chunks will take, judged by those that are done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from graph_features.jobs.engine import transaction
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.records import Chunk, ChunkKey, ChunkState
from graph_features.jobs.tables import chunks

RECENT = 500
"""So many of the last finished chunks are the experience that estimates are made of."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of work; None when nothing of one of the views has run yet, which `unknown` names."""

    seconds: float | None
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.seconds is None:
            return f"no estimate: nothing of {', '.join(self.unknown)} has run yet"
        return f"about {format_seconds(self.seconds)}"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a job's chunks stand. `eta_s` is the estimated time to the end; None while unknown."""

    counts: dict[ChunkState, int]
    rows: int
    workers: int
    eta_s: float | None
    failed: tuple[Chunk, ...]


def estimate(ledger: Ledger, keys: Sequence[ChunkKey], *, workers: int) -> Estimate:
    """Estimate the time that `workers` need for these chunks."""
    rates = _rates(ledger)
    unknown = tuple(sorted({key.view for key in keys} - rates.keys()))
    if unknown:
        return Estimate(seconds=None, unknown=unknown)
    return Estimate(seconds=sum(rates[key.view] * _size(key) for key in keys) / max(1, workers))


def progress_of(ledger: Ledger, job_id: UUID) -> Progress:
    """Return how far a job is and when it may end."""
    found = ledger.chunks.list(job_id)
    counts = {state: sum(chunk.state is state for chunk in found) for state in ChunkState}
    left = [chunk.key for chunk in found if chunk.state not in (ChunkState.DONE, ChunkState.FAILED)]
    workers = len({chunk.runner for chunk in found if chunk.runner is not None})
    return Progress(
        counts=counts,
        rows=sum(chunk.rows for chunk in found if chunk.state is ChunkState.DONE),
        workers=workers,
        eta_s=estimate(ledger, left, workers=workers).seconds if left else (0.0 if found else None),
        failed=tuple(chunk for chunk in found if chunk.state is ChunkState.FAILED),
    )


def format_seconds(seconds: float) -> str:
    """`41 s`, `12 min` or `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3600:.1f} h"


def _rates(ledger: Ledger) -> dict[str, float]:
    """Seconds per slice, or per millisecond of range and partition, by view."""
    query = sa.select(chunks).where(chunks.c.state == ChunkState.DONE).order_by(chunks.c.finished_at.desc())
    spent: dict[str, list[tuple[float, float]]] = {}
    with transaction(ledger.engine) as connection:
        for row in connection.execute(query.limit(RECENT)):
            seconds = row.compute_s + row.offline_s + row.online_s
            size = 1.0 if row.start_ms == row.end_ms else (row.end_ms - row.start_ms) / row.partitions
            spent.setdefault(row.view, []).append((seconds, size))
    return {view: _total(s for s, _ in done) / _total(n for _, n in done) for view, done in spent.items()}


def _total(values: Iterable[float]) -> float:
    return float(sum(values))


def _size(key: ChunkKey) -> float:
    return 1.0 if key.is_slice else (key.end_ms - key.start_ms) / key.partitions
