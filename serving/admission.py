"""Says no before answers become late: how long new work would wait is known from how long the last work did."""

from __future__ import annotations

from graph_features.errors import RingfenceError

SMOOTHING = 0.2
"""Share of the newest observation in the estimate."""


class BusyError(RingfenceError):
    """So much waits to be scored that an answer would come too late: send it again after the time in Retry-After."""


class Admission:
    """Counts payments at work, and refuses more when the wait that they mean is above `limit_s`.

    By Little's law the time that work takes in the queue is the number of payments there times the time each of them
    adds; the latter is what is measured. With nothing at work everything is let in, so that the estimate heals itself.
    """

    def __init__(self, *, limit_s: float) -> None:
        self.at_work = 0
        self._limit_s = limit_s
        self._seconds_each = 0.0

    @property
    def wait_s(self) -> float:
        """How long the next payment would wait."""
        return self.at_work * self._seconds_each

    def enter(self, payments: int) -> int:
        """Count payments in and return how many are at work with them; raise BusyError where they are too many."""
        if self.at_work and self.wait_s > self._limit_s:
            raise BusyError
        self.at_work += payments
        return self.at_work

    def leave(self, payments: int) -> None:
        """Count payments out."""
        self.at_work -= payments

    def observe(self, took_s: float, *, among: int) -> None:
        """Say how long payments were in the queue that were `among` so many."""
        each = took_s / among
        before = self._seconds_each or each
        self._seconds_each = before + SMOOTHING * (each - before)
