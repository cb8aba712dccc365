"""Says no before answers become late: how long new work would wait is known from how long the last work did."""

from __future__ import annotations

from graph_features.errors import RingfenceError

RISE, FALL = 0.1, 0.5
"""Share of the newest observation in the estimate. One slow request, a first one say, must not turn many away."""


PER_REQUEST = 16
"""A request costs as much as so many payments before its first one: one of 1,000 takes far less than 1,000 of one."""


class BusyError(RingfenceError):
    """So much waits to be scored that an answer would come too late: send it again after the time in Retry-After."""


class Admission:
    """Counts work (payments, and PER_REQUEST for each request), and refuses more when it would wait above `limit_s`.

    By Little's law the time that work takes in the queue is the amount of it there times the time each piece adds; the
    latter is what is measured. With nothing at work everything is let in, so that the estimate heals itself.
    """

    def __init__(self, *, limit_s: float) -> None:
        self.at_work = 0
        self._limit_s = limit_s
        self._seconds_each = 0.0

    @property
    def wait_s(self) -> float:
        """How long the next request would wait."""
        return self.at_work * self._seconds_each

    def enter(self, payments: int) -> int:
        """Count a request in and return how much is at work with it; raise BusyError where it is too much."""
        if self.at_work and self.wait_s > self._limit_s:
            raise BusyError
        self.at_work += payments + PER_REQUEST
        return self.at_work

    def leave(self, payments: int) -> None:
        """Count a request out."""
        self.at_work -= payments + PER_REQUEST

    def observe(self, took_s: float, *, among: int) -> None:
        """Say how long a request took that was `among` so much work."""
        each = took_s / among
        share = RISE if each > self._seconds_each else FALL
        self._seconds_each += share * (each - self._seconds_each)
