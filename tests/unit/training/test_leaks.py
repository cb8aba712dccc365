"""Nothing from the test window on reaches a model or a score, and a model of no signal finds none."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from graph_features.clock import DAY_MS
from graph_features.settings import TrainingSettings
from graph_features.transaction import TransactionColumns
from training.dataset import Dataset
from training.ladder import RUNGS, Workshop
from training.metrics import average_precision
from training.point_in_time import tuples_at
from training.trees import TreeSettings

SMALL = TreeSettings(rounds=20, members=1, bins=256)
TEST_DAY = 12
QUICK_RUNGS = ("rules", "logistic regression", "trees", "trees + graph", "network", "network + trees")


def _shop(known: Dataset, quick: TrainingSettings, worlds: ModuleType) -> Workshop:
    return Workshop(
        spec=worlds.spec(),
        known=known,
        validation_from_ms=worlds.START_MS + 7 * DAY_MS,
        settings=quick.model_copy(update={"epochs": 2}),
        trees=SMALL,
    )


def _probes(world: Any, worlds: ModuleType, count: int = 60) -> Any:
    """Tuples of payments at the very start of the test window that nobody made."""
    draw = np.random.default_rng(5)
    columns = TransactionColumns.from_mapping(
        {
            "event_timestamp": np.full(count, worlds.START_MS + TEST_DAY * DAY_MS),
            "sender_id": [f"c{code}" for code in draw.integers(0, 42, count)],
            "receiver_id": [f"t{code}" for code in draw.integers(0, 22, count)],
            "amount_base": np.exp(draw.normal(8.5, 1, count)).astype(np.int64),
        }
    )
    return tuples_at(worlds.spec(), world.edges(), columns, settings=worlds.SETTINGS)


@pytest.mark.parametrize("rung", QUICK_RUNGS)
def test_what_happens_from_the_test_window_on_changes_no_prediction(
    rung: str, worlds: ModuleType, quick: TrainingSettings
) -> None:
    """Parties, amounts and labels shuffled from the window's start on: every score there is the same, bit for bit."""
    world = worlds.World.make()
    other = world.shuffled_from(worlds.START_MS + TEST_DAY * DAY_MS)
    assert not np.array_equal(world.amount, other.amount)
    scores = []
    for one in (world, other):
        known = one.dataset(1, 9, cut_day=TEST_DAY)
        scores.append(RUNGS[rung](_shop(known, quick, worlds))(_probes(one, worlds)))
    np.testing.assert_array_equal(scores[0], scores[1])


def test_shuffled_training_labels_find_nothing(worlds: ModuleType, quick: TrainingSettings) -> None:
    """Trees and network that learned from shuffled labels rank about as chance does, with the true ones far better."""
    world = worlds.World.make()
    known, test = world.dataset(1, 9, cut_day=TEST_DAY), world.dataset(TEST_DAY, 16, cut_day=30)
    base = float(test.is_fraud.mean())
    draw = np.random.default_rng(2)
    for rung in ("trees + graph", "network"):
        found = []
        for _ in range(3):
            blind = replace(known, is_fraud=draw.permutation(known.is_fraud))
            found.append(average_precision(test.is_fraud, RUNGS[rung](_shop(blind, quick, worlds))(test.tuples)))
        assert np.mean(found) < 2 * base, rung
    seeing = average_precision(test.is_fraud, RUNGS["trees + graph"](_shop(known, quick, worlds))(test.tuples))
    assert seeing > 4 * base
