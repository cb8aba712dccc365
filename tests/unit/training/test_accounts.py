"""Account-level scoring: every account by a model that has not seen it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from graph_features.errors import ModelError
from graph_features.settings import TrainingSettings
from graph_features.tuples import AccountInputs
from training.accounts import AccountRows, cross_validate


def _rows(accounts: int, seed: int = 0) -> tuple[AccountRows, pa.Table]:
    """Accounts whose neighbours, and nothing else, tell which are fraudulent."""
    generator = np.random.default_rng(seed)
    is_fraud = generator.random(accounts) < 0.15
    index = np.repeat(np.arange(accounts), generator.integers(1, 5, accounts))
    neighbour = generator.normal(size=(len(index), 3)).astype(np.float32)
    neighbour[:, 1] += 2.5 * is_fraud[index]
    inputs = AccountInputs(
        account_x=generator.normal(size=(accounts, 4)).astype(np.float32), neighbour_x=neighbour, neighbour_index=index
    )
    ids = [f"a{number:04d}" for number in range(accounts)]
    return AccountRows(inputs=inputs), pa.table({"account_id": ids, "is_fraud": is_fraud})


def test_neighbours_alone_tell(quick: TrainingSettings) -> None:
    """With the signal in the neighbourhood only, out-of-fold figures are far above chance, in every fold."""
    rows, labels = _rows(800)
    settings = quick.model_copy(update={"epochs": 12, "patience": 12, "learning_rate": 1e-2})
    report = cross_validate(rows, labels, folds=3, neighbours=4, settings=settings)
    assert report.roc_auc > 0.9
    assert len(report.fold_average_precision) == 3
    assert min(report.fold_roc_auc) > 0.85


def test_shuffled_labels_teach_nothing(quick: TrainingSettings) -> None:
    """Labels that have nothing to do with the accounts give chance: no account is scored by what saw its label."""
    rows, labels = _rows(800)
    shuffled = np.random.default_rng(1).permutation(labels["is_fraud"].to_numpy())
    labels = labels.set_column(1, "is_fraud", pa.array(shuffled))
    report = cross_validate(rows, labels, folds=3, neighbours=4, settings=quick)
    assert report.average_precision < 2 * shuffled.mean()


def test_take_brings_the_edges_along() -> None:
    """A taken account keeps its own edges, in order."""
    rows, _ = _rows(20)
    taken = rows.take(np.array([5, 2]))
    for place, row in enumerate((5, 2)):
        np.testing.assert_array_equal(
            taken.inputs.neighbour_x[taken.inputs.neighbour_index == place],
            rows.inputs.neighbour_x[rows.inputs.neighbour_index == row],
        )


def test_too_few_frauds_are_refused(quick: TrainingSettings) -> None:
    """Folds without fraud have no figures, so they are refused before any work."""
    rows, labels = _rows(30)
    labels = labels.set_column(1, "is_fraud", pa.array(np.arange(30) < 3))
    with pytest.raises(ModelError, match="at least 10 fraudulent accounts, got 3"):
        cross_validate(rows, labels, folds=5, neighbours=4, settings=quick)
