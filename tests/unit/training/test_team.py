"""Several workers that train one network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.settings import TrainingSettings
from training.fit import logits
from training.team import Member, fit_by_workers


def test_two_workers_learn_what_one_does(
    make_dataset: Callable[..., Any], quick: TrainingSettings, spec: InputSpec
) -> None:
    """Without dropout two workers end where one does, but for rounding."""
    dataset, settings = make_dataset(501), quick.model_copy(update={"dropout": 0.0, "batch_rows": 100})
    rows = (dataset.tuples, dataset.is_fraud)
    one, two = (
        fit_by_workers(rows, rows, settings.model_copy(update={"workers": workers}), spec=spec, epochs=2)
        for workers in (1, 2)
    )
    assert [epoch.loss for epoch in two.epochs] == pytest.approx([epoch.loss for epoch in one.epochs], rel=1e-4)
    assert logits(two.model, dataset.tuples) == pytest.approx(logits(one.model, dataset.tuples), abs=1e-3)


def test_shares_are_a_batch_once() -> None:
    """Every row of a batch is one worker's, and who has none still has something to compute."""
    rows = np.arange(10)
    shares = [Member(rank, 3).share(rows) for rank in range(3)]
    assert sorted(np.concatenate(shares).tolist()) == rows.tolist()
    assert [Member(rank, 3).share(rows[:1]).tolist() for rank in range(3)] == [[0], [0], [0]]


def test_what_is_wrong_is_said_as_by_one(
    make_dataset: Callable[..., Any], quick: TrainingSettings, spec: InputSpec
) -> None:
    """Rows without fraud are refused by the workers in the words of one."""
    dataset = make_dataset(100)
    nothing = (dataset.tuples, np.zeros(100, np.bool_))
    with pytest.raises(ModelError, match="both fraud and genuine"):
        fit_by_workers(nothing, None, quick.model_copy(update={"workers": 2}), spec=spec, epochs=1)
