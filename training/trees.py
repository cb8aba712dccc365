"""Gradient-boosted trees over flat columns: the rung that a network has to beat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_features.errors import ModelError
from training.tabular import Columns

Bools = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TreeSettings:
    """How trees grow. `bins` is large on purpose: frauds live in the last percent of a column, where 256 bins put them
    together with hundreds of genuine payments. `members` ensembles that differ by their seed are averaged. Of more than
    `most_columns` only those that brought the most gain to a short first ensemble are kept: a few hundred frauds cannot
    tell hundreds of columns apart.
    """

    rounds: int = 100
    learning_rate: float = 0.1
    depth: int = 5
    rows: float = 0.8
    columns: float = 0.3
    least_weight: float = 5.0
    l2: float = 5.0
    bins: int = 2_048
    members: int = 3
    most_columns: int = 60
    threads: int = 1

    def parameters(self, seed: int) -> dict[str, Any]:
        return {
            "objective": "binary:logistic",
            "tree_method": "hist",
            "max_bin": self.bins,
            "max_depth": self.depth,
            "eta": self.learning_rate,
            "subsample": self.rows,
            "colsample_bytree": self.columns,
            "min_child_weight": self.least_weight,
            "lambda": self.l2,
            "nthread": self.threads,
            "seed": seed,
            "verbosity": 0,
        }


@dataclass(frozen=True, kw_only=True)
class Trees:
    """Fitted ensembles over the columns at `kept` of `names`: of those that take more than one value in training."""

    names: tuple[str, ...]
    kept: npt.NDArray[np.int64]
    boosters: tuple[Any, ...]

    @classmethod
    def fit(cls, table: Columns, is_fraud: Bools, settings: TreeSettings, *, seed: int) -> Trees:
        """Grow `settings.members` ensembles; the same rows, settings and seed give the same trees.

        Raises ModelError when there is no fraud to learn from, or no xgboost.
        """
        if not is_fraud.any() or is_fraud.all():
            raise ModelError(
                f"trees need both fraud and genuine rows, got {int(is_fraud.sum())} frauds among {len(is_fraud)}: "
                "choose a longer period, or a later label cut"
            )
        kept = _varying(table.x)
        if len(kept) > settings.most_columns:
            first = replace(settings, members=1, rounds=max(1, settings.rounds // 4), bins=256)
            gain = cls._grown(table, kept, is_fraud, first, seed).gain()
            at = {name: place for place, name in enumerate(table.names)}
            kept = np.sort([at[name] for name in list(gain)[: settings.most_columns]]).astype(np.int64)
        return cls._grown(table, kept, is_fraud, settings, seed)

    @classmethod
    def _grown(
        cls, table: Columns, kept: npt.NDArray[np.int64], is_fraud: Bools, settings: TreeSettings, seed: int
    ) -> Trees:
        xgboost = _xgboost()
        rows = xgboost.QuantileDMatrix(table.x[:, kept], is_fraud, max_bin=settings.bins, nthread=settings.threads)
        boosters = tuple(
            xgboost.train(settings.parameters(seed * settings.members + member), rows, settings.rounds)
            for member in range(settings.members)
        )
        return cls(names=table.names, kept=kept, boosters=boosters)

    def logit(self, table: Columns) -> Float64:
        """Log odds of fraud, float64 [B], of columns with the names that it was fitted on; mean over the members."""
        if table.names != self.names:
            raise ModelError(f"the trees were fitted on {len(self.names)} columns, got {len(table.names)} others")
        x = table.x[:, self.kept]
        margins = [booster.inplace_predict(x, predict_type="margin") for booster in self.boosters]
        return np.asarray(np.mean(margins, axis=0), np.float64)

    def gain(self) -> dict[str, float]:
        """Share of the total gain that each column brought, largest first."""
        total = np.zeros(len(self.kept))
        for booster in self.boosters:
            for name, value in booster.get_score(importance_type="total_gain").items():
                total[int(name.removeprefix("f"))] += value
        share = total / max(float(total.sum()), 1e-300)
        order = np.argsort(-share, kind="stable")
        return {self.names[self.kept[at]]: float(share[at]) for at in order if share[at] > 0}


def _varying(x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Columns in which not all rows are equal, nulls being equal to each other."""
    null = np.isnan(x)
    filled = np.where(null, np.float32(0), x)
    return np.flatnonzero((null != null[:1]).any(axis=0) | (filled != filled[:1]).any(axis=0))


def _xgboost() -> Any:
    try:
        import xgboost
    except ImportError:
        raise ModelError("trees need xgboost: install Ringfence with the extra `train`") from None
    return xgboost
