"""Mini-batches of input tuples: deterministic under a seed, with the class imbalance dealt with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from graph_features.tuples import InputTuples

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class BatchSampler:
    """Splits shuffled rows into batches, the same for the same (seed, epoch).

    `negatives_per_positive` thins genuine rows anew in each epoch (None keeps all of them): every fraud meets other
    genuine payments each time, and none is lost for good.
    """

    labels: npt.NDArray[np.bool_]
    batch_rows: int
    seed: int
    negatives_per_positive: float | None = None

    def rows(self, epoch: int) -> Int64:
        """Row numbers of one epoch, shuffled."""
        generator = np.random.default_rng([self.seed, epoch])
        return generator.permutation(self._thinned(generator))

    def batches(self, epoch: int) -> Iterator[Int64]:
        """Row numbers per batch, the last one shorter."""
        rows = self.rows(epoch)
        for start in range(0, len(rows), self.batch_rows):
            yield rows[start : start + self.batch_rows]

    def count(self) -> int:
        """Batches in an epoch."""
        return -(-self._size() // self.batch_rows)

    def _size(self) -> int:
        positives = int(self.labels.sum())
        return positives + min(len(self.labels) - positives, self._kept(positives))

    def _kept(self, positives: int) -> int:
        if self.negatives_per_positive is None:
            return len(self.labels)
        return int(np.ceil(self.negatives_per_positive * max(1, positives)))

    def _thinned(self, generator: np.random.Generator) -> Int64:
        positive, negative = np.flatnonzero(self.labels), np.flatnonzero(~self.labels)
        kept = self._kept(len(positive))
        if kept < len(negative):
            negative = generator.choice(negative, kept, replace=False)
        return np.concatenate([positive, negative])


def positive_weight(labels: npt.NDArray[np.bool_], *, limit: float) -> float:
    """Weight of a fraud in the loss: the square root of genuine per fraud, at most `limit`.

    The full ratio makes a few hundred mislabelled-looking frauds drown the rest; the root keeps ranking and calibration
    workable at 1 fraud in 100 to 1 in 1,000.
    """
    positives = max(1, int(labels.sum()))
    return float(np.clip(np.sqrt((len(labels) - positives) / positives), 1.0, limit))


def recent_neighbours(tuples: InputTuples, k: int) -> InputTuples:
    """Keep the `k` most recent neighbour edges per account (they come newest first); all else is left as it is."""
    position = np.arange(len(tuples.neighbour_index)) - tuples.first_edge[tuples.neighbour_index]
    kept = position < k
    return replace(tuples, neighbour_x=tuples.neighbour_x[kept], neighbour_index=tuples.neighbour_index[kept])
