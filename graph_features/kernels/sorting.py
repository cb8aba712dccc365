"""Stable orders by code, by counting: payments come sorted by time, so that grouping them takes two passes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graph_features.edges import Int64
from graph_features.kernels.compiled import compiled


def by_code(code: npt.NDArray[np.integer], n_codes: int) -> tuple[Int64, Int64]:
    """Return offsets (n_codes + 1) and the stable order of items by code, 0 to n_codes - 1; -1 is left out."""
    plain = np.ascontiguousarray(code, np.int64).view()
    plain.setflags(write=False)  # one type, so that it is compiled once
    offsets, order = _placed(plain, n_codes)
    return offsets, order


def by_code_and_time(code: npt.NDArray[np.integer], ts_ms: Int64, n_codes: int) -> tuple[Int64, Int64]:
    """Return the same with the items of one code in order of time, those of one instant as they came.

    Cheap where `ts_ms` is a few sorted runs one after the other: they are merged.
    """
    order = np.argsort(ts_ms, kind="stable")
    offsets, then = by_code(code[order], n_codes)
    return offsets, order[then]


def by_two_codes(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer], n_codes: int) -> Int64:
    """Return the stable order by `first`, then `second`, both of 0 to n_codes - 1."""
    order = by_code(second, n_codes)[1]
    return order[by_code(first[order], n_codes)[1]]


@compiled
def _placed(code: Int64, n_codes: int) -> tuple[Int64, Int64]:
    offsets = np.zeros(n_codes + 1, np.int64)
    for k in range(len(code)):
        if code[k] >= 0:
            offsets[code[k] + 1] += 1
    for c in range(n_codes):
        offsets[c + 1] += offsets[c]
    order = np.empty(offsets[n_codes], np.int64)
    at = offsets[:-1].copy()
    for k in range(len(code)):
        if code[k] >= 0:
            order[at[code[k]]] = k
            at[code[k]] += 1
    return offsets, order
