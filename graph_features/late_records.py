"""Records that are out of order: of a time that is not after that of every record ingested before. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
