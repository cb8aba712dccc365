"""The ledger's tables. What must hold is a constraint here, so that no code path and no second process can break it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

SCHEMA = "ringfence"
"""PostgreSQL schema; SQLite has none (see engine.translate)."""


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An aware UTC instant: timestamptz in PostgreSQL, ISO text in SQLite, which sorts as the time does."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData(schema=SCHEMA)

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("parameters", sa.JSON, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("requested_by", sa.Text, nullable=False),
    # The instant a job speaks for when its parameters name none: its tick, or when it was asked for.
    sa.Column("due_at", UtcDateTime, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("runner", sa.Text),
    sa.Column("heartbeat_at", UtcDateTime),
    # What the runner was asked to do at its next safe point.
    sa.Column("asked", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("progress_done", sa.BigInteger, nullable=False, default=0),
    sa.Column("progress_total", sa.BigInteger),
    sa.Column("error", sa.Text),
    sa.CheckConstraint(
        "state IN ('queued', 'running', 'paused', 'done', 'failed', 'cancelled')", name="jobs_state_is_known"
    ),
    sa.CheckConstraint(
        "asked IS NULL OR (state = 'running' AND asked IN ('cancel', 'pause'))", name="jobs_only_running_is_asked"
    ),
    sa.CheckConstraint(
        "(state = 'running') = (runner IS NOT NULL) AND (runner IS NULL) = (heartbeat_at IS NULL)",
        name="jobs_running_means_a_runner",
    ),
    sa.CheckConstraint(
        "(state IN ('done', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="jobs_finished_has_a_time"
    ),
    sa.CheckConstraint("state NOT IN ('running', 'done', 'failed') OR started_at IS NOT NULL", name="jobs_started"),
    sa.CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name="jobs_failed_means_an_error"),
    sa.CheckConstraint(
        "progress_done >= 0 AND (progress_total IS NULL OR progress_done <= progress_total)", name="jobs_progress"
    ),
)
sa.Index("jobs_by_state", jobs.c.state, jobs.c.created_at)

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column("id", _BIG, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.Uuid, sa.ForeignKey(jobs.c.id, ondelete="CASCADE"), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("view", sa.Text, nullable=False),
    # The view's code and constants as planned: a chunk of other code is never mixed in.
    sa.Column("view_hash", sa.Text, nullable=False),
    # Epoch milliseconds. A range [start_ms, end_ms) of an event view; start_ms = end_ms = as_of of a slice.
    sa.Column("start_ms", sa.BigInteger, nullable=False),
    sa.Column("end_ms", sa.BigInteger, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("partitions", sa.Integer, nullable=False),
    # What the rows were, or will be, computed from: a replay must compute the same ones.
    sa.Column("source_seq", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False, default="pending"),
    # Over all runs of the job, and within the present one.
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    # The worker that has the chunk in hand, and when it was last heard of.
    sa.Column("runner", sa.Text),
    sa.Column("heartbeat_at", UtcDateTime),
    sa.Column("claimed_at", UtcDateTime),
    sa.Column("offline_at", UtcDateTime),
    # Where the offline rows are: a table, or the file that was renamed into place.
    sa.Column("offline_name", sa.Text),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("rows", sa.BigInteger, nullable=False, default=0),
    # Seconds of the try that succeeded.
    sa.Column("compute_s", sa.Double, nullable=False, default=0.0),
    sa.Column("offline_s", sa.Double, nullable=False, default=0.0),
    sa.Column("online_s", sa.Double, nullable=False, default=0.0),
    # The life of the online store that acknowledged the rows: see OnlineStore.epoch.
    sa.Column("online_epoch", sa.Text),
    sa.Column("error", sa.Text),
    # It failed because a store was away: the work itself is sound.
    sa.Column("outage", sa.Boolean(create_constraint=False), nullable=False, default=False),
    sa.UniqueConstraint(
        "job_id", "view", "view_hash", "start_ms", "end_ms", "partition", "partitions", name="chunks_once_per_job"
    ),
    sa.CheckConstraint(
        "state IN ('pending', 'running', 'offline_committed', 'done', 'failed')", name="chunks_state_is_known"
    ),
    sa.CheckConstraint("start_ms <= end_ms", name="chunks_range"),
    sa.CheckConstraint("partition >= 0 AND partition < partitions", name="chunks_partition"),
    sa.CheckConstraint("(runner IS NULL) = (heartbeat_at IS NULL)", name="chunks_runner_has_a_heartbeat"),
    sa.CheckConstraint("state <> 'running' OR runner IS NOT NULL", name="chunks_running_means_a_runner"),
    sa.CheckConstraint("state NOT IN ('pending', 'done', 'failed') OR runner IS NULL", name="chunks_resting_has_none"),
    sa.CheckConstraint("(offline_at IS NULL) = (offline_name IS NULL)", name="chunks_offline_has_a_name"),
    sa.CheckConstraint(
        "state NOT IN ('offline_committed', 'done') OR offline_at IS NOT NULL", name="chunks_offline_before_online"
    ),
    sa.CheckConstraint(
        "state NOT IN ('pending', 'running') OR offline_at IS NULL", name="chunks_offline_is_never_forgotten"
    ),
    sa.CheckConstraint("(state = 'done') = (finished_at IS NOT NULL)", name="chunks_done_has_a_time"),
    sa.CheckConstraint("(state = 'done') = (online_epoch IS NOT NULL)", name="chunks_done_was_acknowledged"),
    sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="chunks_failed_means_an_error"),
)
sa.Index("chunks_by_job", chunks.c.job_id, chunks.c.state)
sa.Index("chunks_finished", chunks.c.finished_at)
_in_hand = sa.text("runner IS NOT NULL")
# One worker per piece of work, whatever job it belongs to and whichever version of the code it runs.
sa.Index(
    "chunks_one_running_per_key",
    chunks.c.view,
    chunks.c.start_ms,
    chunks.c.end_ms,
    chunks.c.partition,
    chunks.c.partitions,
    unique=True,
    postgresql_where=_in_hand,
    sqlite_where=_in_hand,
)

coverage = sa.Table(
    "coverage",
    metadata,
    # What is in the offline store: the last version of each range or slice, whichever job wrote it. Written in the
    # transaction that makes its chunk offline_committed.
    sa.Column("view", sa.Text, primary_key=True),
    sa.Column("start_ms", sa.BigInteger, primary_key=True),
    sa.Column("end_ms", sa.BigInteger, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("partitions", sa.Integer, primary_key=True),
    sa.Column("view_hash", sa.Text, nullable=False),
    sa.Column("source_seq", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("written_at", UtcDateTime, nullable=False),
    # Records up to this ingest sequence have been looked at; `late` says that one of them changes these rows.
    sa.Column("checked_seq", sa.BigInteger, nullable=False),
    sa.Column("late", sa.Boolean(create_constraint=False), nullable=False),
    sa.CheckConstraint("start_ms <= end_ms", name="coverage_range"),
    sa.CheckConstraint("checked_seq >= source_seq", name="coverage_checked"),
)

ticks = sa.Table(
    "ticks",
    metadata,
    # The primary key is the promise that a tick fires once.
    sa.Column("schedule", sa.Text, primary_key=True),
    sa.Column("tick_at", UtcDateTime, primary_key=True),
    sa.Column("job_id", sa.Uuid, sa.ForeignKey(jobs.c.id, ondelete="CASCADE"), nullable=False, unique=True),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

schedules = sa.Table(
    "schedules",
    metadata,
    # What the leading scheduler runs, for those who look: the truth about ticks is in `ticks`.
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("rhythm", sa.Text, nullable=False),
    sa.Column("next_at", UtcDateTime),
    sa.Column("grace_s", sa.Double, nullable=False),
    sa.Column("leader", sa.Text, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
)


def as_dict(row: sa.Row[Any]) -> dict[str, Any]:
    return dict(row._mapping)
