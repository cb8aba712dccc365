"""Records that are out of order: of a time that is not after that of every record ingested before. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph_features.clock import NEVER_MS

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Late:
    """Records that were out of order, one after the other: an account code, since when it counts, its sequence."""

    account: Int64
    ts_ms: Int64
    seq: Int64


def out_of_order(seq: Int64, ts_ms: Int64, *, after_ms: int = -1) -> npt.NDArray[np.bool_]:
    """Return which records are not after all those of a smaller sequence; the last of earlier ones is `after_ms`."""
    order = np.argsort(seq, kind="stable")
    newest = np.maximum.accumulate(np.concatenate(([after_ms], ts_ms[order])))
    late = np.empty(len(seq), np.bool_)
    late[order] = ts_ms[order] <= newest[:-1]
    return late


NOTHING_LATE = Late(account=np.empty(0, np.int64), ts_ms=np.empty(0, np.int64), seq=np.empty(0, np.int64))


@dataclass(frozen=True, kw_only=True)
class Told:
    """What was late of some accounts, and `others`, accounts whose rows may have to tell of it.

    `seq` is ascending; `earliest_ms` is, for each, the earliest time of it and all that follow.
    """

    others: Sequence[str]
    seq: Int64
    earliest_ms: Int64

    @classmethod
    def of(cls, others: Sequence[str], seq: Int64, ts_ms: Int64) -> Told:
        """Late records of these sequences and times."""
        order = np.argsort(seq)
        return cls(others=others, seq=seq[order], earliest_ms=np.minimum.accumulate(ts_ms[order][::-1])[::-1])

    def since_ms(self, seq: int) -> int:
        """The earliest time of what was ingested after `seq`; NEVER_MS if nothing was."""
        at = int(np.searchsorted(self.seq, seq, side="right"))
        return int(self.earliest_ms[at]) if at < len(self.seq) else NEVER_MS


NOBODY_TOLD = Told.of((), NOTHING_LATE.seq, NOTHING_LATE.ts_ms)
