"""The book's own fifteen features and its XGBoost: that its figures come out proves protocol and metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

DAY_S = 86_400
WINDOWS_D = (1, 7, 30)
LABEL_DELAY_D = 7
NIGHT_ENDS = 6

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


def book_features(raw: pd.DataFrame) -> Float32:
    """Return float32 [rows, 15], in order of time as `raw` is.

    Amount, weekend, night; per customer the count and mean amount of the last 1, 7 and 30 days, this payment included;
    per terminal the count and the share of fraud of the 1, 7 and 30 days that ended a week ago.
    Source: Le Borgne et al., Reproducible Machine Learning for Credit Card Fraud Detection, chapter 3.
    """
    ts_s = raw["TX_DATETIME"].to_numpy().astype("datetime64[s]").astype(np.int64)
    amount = raw["TX_AMOUNT"].to_numpy()
    weekend = (ts_s // DAY_S + 3) % 7 >= 5
    night = ts_s % DAY_S // 3_600 <= NIGHT_ENDS
    columns: list[npt.NDArray[Any]] = [amount, weekend, night]
    customers, terminals = (_Groups(raw[name].to_numpy(), ts_s) for name in ("CUSTOMER_ID", "TERMINAL_ID"))
    for days in WINDOWS_D:
        count, total = customers.window(amount, days * DAY_S, 0)
        columns += [count, total / count]
    fraud = raw["TX_FRAUD"].to_numpy().astype(np.float64)
    for days in WINDOWS_D:
        count, frauds = terminals.window(fraud, (LABEL_DELAY_D + days) * DAY_S, LABEL_DELAY_D * DAY_S)
        columns += [count, frauds / np.maximum(count, 1)]
    return np.stack(columns, axis=1).astype(np.float32)


class _Groups:
    """Rows of each key in order of time."""

    def __init__(self, key: npt.NDArray[Any], ts_s: Int64) -> None:
        self._order = np.argsort(key, kind="stable")
        self._group = key[self._order].astype(np.int64) << 34
        self._ts_s = ts_s[self._order]
        self._place = self._group + self._ts_s

    def window(self, value: Float64, longest_s: int, shortest_s: int) -> tuple[Float64, Float64]:
        """Count and sum over the rows of the same key with longest_s > age >= shortest_s; at age 0 up to this row."""
        running = np.concatenate([[0.0], np.cumsum(value[self._order])])
        start = np.searchsorted(self._group, self._group, side="left")
        first = np.maximum(np.searchsorted(self._place, self._place - longest_s, side="right"), start)
        end = np.arange(1, len(self._place) + 1)
        if shortest_s:
            end = np.searchsorted(self._place, self._place - shortest_s, side="right")
        end = np.maximum(end, first)
        count, total = np.empty(len(end)), np.empty(len(end))
        count[self._order], total[self._order] = end - first, running[end] - running[first]
        return count, total


def book_scores(x_train: Float32, is_fraud: npt.NDArray[np.bool_], x_test: Float32, *, threads: int) -> Float64:
    """Scores of XGBoost as the book ran it: exact splits, everything else as it comes."""
    import xgboost

    model = xgboost.XGBClassifier(tree_method="exact", base_score=0.5, n_jobs=threads, random_state=0)
    model.fit(x_train, is_fraud)
    return np.asarray(model.predict_proba(x_test)[:, 1], np.float64)
