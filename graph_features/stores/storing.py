"""How rows are put into an online store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Storing:
    """How rows are put: for how long, and whether they are compared with what is there.

    `after_ms` counts from the write; `at_ms` is epoch milliseconds of each row. At most one of them is given.
    `compare` false overwrites newer rows too.
    """

    after_ms: int | None = None
    at_ms: Sequence[int] | None = None
    compare: bool = True

    def tail(self, rows: slice) -> list[str | int]:
        """Last arguments of the script on Redis for these rows: compared or not, kind of expiry, its times."""
        compared = "1" if self.compare else "0"
        if self.at_ms is not None:
            return [compared, "AT", *self.at_ms[rows]]
        return [compared, ""] if self.after_ms is None else [compared, "AFTER", self.after_ms]


PLAIN = Storing()
"""Compared, and kept until removed."""


def slices(stop: int, step: int, start: int = 0) -> list[slice]:
    """Ranges of at most `step` that cover [start, stop)."""
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]
