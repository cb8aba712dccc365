"""Constants of the model's input scaling, measured once on the training rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

HEAVY_TAIL = 20.0
"""Columns that reach further than this are put through a signed logarithm; ratios, hours and flags are not."""

OUTLIER_LIMIT = 8.0
"""Scaled inputs are clipped here, in standard deviations: one absurd amount must not own the score."""

SMALLEST_LOG_SPREAD = 0.05
"""Logarithms differ by a last bit from one runtime to the next: dividing that by less would move scores."""


@dataclass(frozen=True, kw_only=True)
class ColumnScaling:
    """Per column: mean and standard deviation (after the logarithm where `log`), and which columns were ever null.

    `fill` is the raw value that scales to 0: what stands in for a null. Columns that are null in exactly the same rows
    (those of one view) share one flag, that of the first.
    """

    fill: Float32
    mean: Float32
    std: Float32
    log: npt.NDArray[np.bool_]
    null_columns: npt.NDArray[np.int64]

    @classmethod
    def measure(cls, *blocks: Float32, with_log: bool = True) -> ColumnScaling:
        """Measure over the rows of all `blocks`, each [rows, columns] with NaN for null; no logarithm if so wanted."""
        x = np.concatenate(blocks) if len(blocks) > 1 else blocks[0]
        null = np.isnan(x)
        known = np.maximum((~null).sum(axis=0), 1)
        filled = np.where(null, np.float32(0), x)
        log = np.abs(filled).max(axis=0, initial=0.0) > (HEAVY_TAIL if with_log else np.inf)
        filled[:, log] = np.sign(filled[:, log]) * np.log1p(np.abs(filled[:, log]))
        mean = filled.sum(axis=0, dtype=np.float64) / known
        # Zeros that stand for nulls would bring down the spread: they are taken out before the square.
        centred = np.where(null, 0.0, filled - mean)
        std = np.sqrt((centred**2).sum(axis=0) / known)
        return cls(
            fill=np.where(log, np.sign(mean) * np.expm1(np.abs(mean)), mean).astype(np.float32),
            mean=mean.astype(np.float32),
            std=np.where(log, np.maximum(std, SMALLEST_LOG_SPREAD), np.where(std < 1e-12, 1.0, std)).astype(np.float32),
            log=log,
            null_columns=_distinct_nulls(null),
        )

    def apply(self, x: Float32) -> Float32:
        """Return [rows, columns + flags] as the network's own scaler does it, for models that have none."""
        null = np.isnan(x)
        value = np.where(null, self.fill, x)
        value[:, self.log] = np.sign(value[:, self.log]) * np.log1p(np.abs(value[:, self.log]))
        scaled = np.clip((value - self.mean) / self.std, -OUTLIER_LIMIT, OUTLIER_LIMIT)
        return np.concatenate([scaled, null[:, self.null_columns]], axis=1, dtype=np.float32)


def _distinct_nulls(null: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    columns = np.flatnonzero(null.any(axis=0))
    if len(columns) == 0:
        return np.empty(0, np.int64)
    packed = np.packbits(null[:, columns], axis=0)
    _, first = np.unique(packed, axis=1, return_index=True)
    return np.sort(columns[first]).astype(np.int64)
