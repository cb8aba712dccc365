"""How benchmarks time things: sides alternate within one run, medians are taken, and quantiles where there are many."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np


def note(text: str) -> None:
    """Say what happens now; figures go to standard output, this to standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def seconds(work: Callable[[], Any]) -> float:
    """Run `work` once."""
    started = perf_counter()
    work()
    return perf_counter() - started


def alternately(rounds: int, *sides: Callable[[], Any]) -> list[float]:
    """Run all sides in turn, `rounds` times; return the median seconds of each."""
    taken = [[seconds(side) for side in sides] for _ in range(rounds)]
    for at, column in enumerate(zip(*taken, strict=True)):
        note(f"  side {at + 1}: {' '.join(f'{one:.3f}' for one in column)} s")
    return [float(median) for median in np.median(taken, axis=0)]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Quantiles of repeated calls, in milliseconds."""

    p50_ms: float
    p99_ms: float
    calls: int


def repeated(call: Callable[[int], Any], *, most: int, limit_s: float, least: int = 5) -> Spread:
    """Call with 0, 1, 2, ... up to `most` times, fewer when `limit_s` have passed, but at least `least` times."""
    taken: list[float] = []
    while len(taken) < most and (len(taken) < least or sum(taken) < limit_s):
        at = len(taken)
        taken.append(seconds(lambda at=at: call(at)))  # type: ignore[misc]
    p50, p99 = np.quantile(taken, (0.5, 0.99)) * 1000
    return Spread(p50_ms=float(p50), p99_ms=float(p99), calls=len(taken))
