"""Cut points that tell frauds from genuine payments in one column: inputs of their own, beside the column itself.

A smooth function of a column needs thousands of frauds to learn a sharp edge in its last hundredth, a tree needs ten.
The cut points are those of a small tree over each column alone, as in the target-aware bins of Gorishniy et al., "On
Embeddings for Numerical Features in Tabular Deep Learning" (2022); the few that tell most are kept, for a few hundred
frauds cannot tell hundreds of inputs apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.scaling import OUTLIER_LIMIT

Bools = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

LEAVES = 8
"""Of the tree over one column: seven cut points at most."""

LEAST_ROWS = 10
"""On either side of a cut point."""


@dataclass(frozen=True, kw_only=True)
class CutPoints:
    """C cut points, those that tell most first: `column` int64 [C], `at` float32 [C] in the column's own unit.

    `below` and `above` float32 [C] are what the network sees instead of 0 and 1: mean 0 and deviation 1 over the rows
    they were found on, clipped as scaled columns are. Null is below.
    """

    column: Int64
    at: Float32
    below: Float32
    above: Float32

    @classmethod
    def find(cls, x: Float32, is_fraud: Bools, *, most: int) -> CutPoints:
        """Find at most `most` cut points in x [rows, columns], NaN for null."""
        found = [
            cut for column in range(x.shape[1] if most else 0) for cut in _of_column(x[:, column], column, is_fraud)
        ]
        best = sorted(found, key=lambda cut: (-cut[0], cut[1:]))[:most]
        column = np.array([cut[1] for cut in best], np.int64)
        at = np.array([cut[2] for cut in best], np.float32)
        share = np.array([(x[:, one] > cut).mean() for one, cut in zip(column, at, strict=True)])
        spread = np.sqrt(share * (1 - share))
        below, above = (np.clip(value / spread, -OUTLIER_LIMIT, OUTLIER_LIMIT) for value in (-share, 1 - share))
        return cls(column=column, at=at, below=below.astype(np.float32), above=above.astype(np.float32))

    def __len__(self) -> int:
        return len(self.column)


def _of_column(values: Float32, column: int, is_fraud: Bools) -> list[tuple[float, int, np.float32]]:
    """What each cut point of a column tells (rows times bits), the column, and where it is."""
    from sklearn.tree import DecisionTreeClassifier

    known = ~np.isnan(values)
    values, is_fraud = values[known], is_fraud[known]
    if len(values) < 2 * LEAST_ROWS or values.min() == values.max() or is_fraud.all() or not is_fraud.any():
        return []
    fitted: Any = DecisionTreeClassifier(
        criterion="entropy", max_leaf_nodes=LEAVES, min_samples_leaf=LEAST_ROWS, random_state=0
    )
    tree = fitted.fit(values[:, None], is_fraud).tree_
    told = tree.n_node_samples * tree.impurity
    inner = np.flatnonzero(tree.children_left >= 0)
    gain = told[inner] - told[tree.children_left[inner]] - told[tree.children_right[inner]]
    at = tree.threshold[inner].astype(np.float32)
    # Between two neighbouring values: rounded down, so that it does not become the upper one, which is beyond it.
    at = np.where(at > tree.threshold[inner], np.nextafter(at, np.float32(-np.inf)), at)
    return [(float(more), column, np.float32(cut)) for more, cut in zip(gain, at, strict=True)]
