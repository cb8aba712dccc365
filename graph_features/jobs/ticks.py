"""When scheduled jobs are due: pure functions of the schedule and an instant, the same in every scheduler process."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger

from graph_features.clock import EPOCH
from graph_features.jobs.schedule_file import ScheduledJob

_INSTANT = timedelta(microseconds=1)


class Ticks(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """The ticks of one scheduled job, and the APScheduler trigger that wakes up for them.

    A tick has its nominal time (what cron says, or a multiple of the interval since 1970) and runs after a delay that
    is drawn from its name and time. APScheduler's own jitter is a random number: two schedulers would disagree on what
    a tick is, and the ledger could not see that it had run.
    """

    def __init__(self, job: ScheduledJob, zone: ZoneInfo) -> None:
        self.job = job
        self._cron = None if job.cron is None else CronTrigger.from_crontab(job.cron, timezone=zone)

    def delay(self, tick_at: datetime) -> timedelta:
        """The tick's share of the jitter."""
        digest = hashlib.sha256(f"{self.job.name} {tick_at.timestamp()}".encode()).digest()
        return self.job.jitter * (int.from_bytes(digest[:6], "big") / 2**48)

    def after(self, moment: datetime) -> datetime | None:
        """The first nominal tick later than `moment`, in UTC."""
        if self._cron is None:
            every = self.job.every
            assert every is not None, "the schedule file has checked this"
            return EPOCH + ((moment - EPOCH) // every + 1) * every
        found = self._cron.get_next_fire_time(None, moment + _INSTANT)
        return None if found is None else found.astimezone(UTC)

    def due(self, now: datetime) -> datetime | None:
        """The last tick whose delay is over at `now` and that is not later than the misfire grace; None if none is."""
        horizon = self.job.misfire_grace + self.job.jitter
        window = min(2 * self.job.jitter + timedelta(minutes=1), horizon)
        while True:  # widening backwards: a long grace must not mean stepping through all of its ticks
            due = self._last_due(now - window, now)
            if due is not None or window >= horizon:
                return due
            window = min(4 * window, horizon)

    def missed(self, now: datetime, *, after: datetime | None) -> list[datetime]:
        """The ticks to run at `now`, oldest first; `after` is the last one that ran, None if none ever did.

        One at most, the last that is due, unless the job catches up on all: then every one since `after` that is not
        later than the misfire grace. A schedule that never ran has missed nothing but its last tick.
        """
        last = self.due(now)
        if last is None or (after is not None and last <= after):
            return []
        if self.job.catch_up == "last" or after is None:
            return [last]
        found = []
        tick_at = self.after(max(after, now - self.job.misfire_grace - self.job.jitter - _INSTANT))
        while tick_at is not None and tick_at <= last:
            if tick_at + self.delay(tick_at) <= now <= tick_at + self.delay(tick_at) + self.job.misfire_grace:
                found.append(tick_at)
            tick_at = self.after(tick_at)
        return found

    def _last_due(self, since: datetime, now: datetime) -> datetime | None:
        due = None
        tick_at = self.after(since - _INSTANT)  # one that is late by all of its grace is still due
        while tick_at is not None and tick_at <= now:
            start = tick_at + self.delay(tick_at)
            if start <= now <= start + self.job.misfire_grace:
                due = tick_at
            tick_at = self.after(tick_at)
        return due

    def get_next_fire_time(self, _previous: Any, now: datetime) -> datetime | None:
        """The next wake-up after `now` (APScheduler's interface)."""
        tick_at = self.after(now - self.job.jitter)
        starts = []
        while tick_at is not None:
            start = tick_at + self.delay(tick_at)
            if start > now:
                starts.append(start)
            # Later ticks cannot start before their nominal time.
            if starts and tick_at >= min(starts):
                break
            tick_at = self.after(tick_at)
        return min(starts, default=None)
