"""Figures per scenario of fraud, where scenarios are known: of simulated data, or of cases that were investigated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from graph_features.errors import InvalidInputError
from training.dataset import Dataset
from training.metrics import average_precision

COLUMNS = ("transaction_id", "scenario")


def read_scenarios(path: Path) -> pa.Table:
    """Read transaction_id and scenario (null: none) from Parquet or CSV; raise InvalidInputError."""
    table = pa_csv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)
    for column in COLUMNS:
        if column not in table.column_names:
            names = ", ".join(table.column_names)
            raise InvalidInputError(field=str(path), expected=f"a column {column} among {names}", got="none")
    return table.select(list(COLUMNS)).cast(pa.schema([(name, pa.string()) for name in COLUMNS]))


def scenario_figures(
    dataset: Dataset, score: npt.NDArray[Any], scenarios: pa.Table, *, threshold: float
) -> dict[str, float]:
    """Per scenario of which the period holds a fraud: `frauds_S`, `recall_S` at the threshold, `average_precision_S`.

    The latter ranks the scenario's frauds among the genuine payments alone, so that scenarios do not hide each other.
    """
    position = pc.index_in(
        pa.array(dataset.transaction_id, pa.string()), value_set=scenarios["transaction_id"].combine_chunks()
    )
    named = scenarios["scenario"].combine_chunks().take(position).to_numpy(zero_copy_only=False)
    figures: dict[str, float] = {}
    for name in sorted({one for one in named[dataset.is_fraud] if one}):
        fraud = dataset.is_fraud & (named == name)
        rows = np.flatnonzero(fraud | ~dataset.is_fraud)
        figures |= {
            f"frauds_{name}": float(fraud.sum()),
            f"recall_{name}": float((score[fraud] >= threshold).mean()),
            f"average_precision_{name}": average_precision(fraud[rows], score[rows]),
        }
    return figures
