"""Training by workers on Ray: they learn what one does, and what is left of it when one of them dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.schema import Cadence, DType, FeatureSchema, ViewSchema
from graph_features.settings import TrainingSettings
from graph_features.tuples import InputTuples
from training.checkpoint import Checkpoint
from training.fit import logits
from training.team import Rows, fit_by_workers

NEIGHBOURS = 2
SETTINGS = TrainingSettings(
    hidden=16, neighbours=NEIGHBOURS, epochs=1_000, batch_rows=100, dropout=0.0, device="cpu", seed=1, workers=2
)
ALONE = SETTINGS.model_copy(update={"workers": 1})


@pytest.fixture(scope="module")
def rows() -> Rows:
    """501 payments, so that the last batch is no multiple of two, fraudulent where an input is high."""
    random = np.random.default_rng(5)
    index = np.repeat(np.arange(2 * 501), random.integers(0, NEIGHBOURS + 1, 2 * 501))
    sender_x, receiver_x, transaction_x = (
        (random.normal(size=(501, columns)) * 30).astype(np.float32) for columns in (5, 5, 6)
    )
    tuples = InputTuples(
        sender_x=sender_x,
        receiver_x=receiver_x,
        transaction_x=transaction_x,
        neighbour_x=random.normal(size=(len(index), 4)).astype(np.float32),
        neighbour_index=index.astype(np.int64),
    )
    return tuples, receiver_x[:, 0] + random.normal(size=501) * 5 > 45


@pytest.fixture(scope="module")
def spec() -> InputSpec:
    """Inputs that say as much as training asks for."""
    features = (FeatureSchema(name="f", dtype=DType.INT64, description="", unit="", range=""),)
    view = ViewSchema(name="v", entity="account", cadence=Cadence.EVENT, description="", features=features)
    return InputSpec.derive([view], feature_hash="hash", profile=(), neighbours=NEIGHBOURS)


@contextmanager
def node_killed(nodes: Any, checkpoint: Checkpoint) -> Iterator[None]:
    """Kill a node with the worker on it as soon as an epoch has been saved; fail if none is."""
    saved = threading.Event()

    def kill() -> None:
        limit = time.monotonic() + 60
        while not checkpoint.path.exists() and time.monotonic() < limit:
            time.sleep(0.02)
        if checkpoint.path.exists():
            saved.set()
            nodes.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        killer.join()
    assert saved.is_set(), "the training saved nothing within a minute"


def test_two_workers_on_ray_learn_what_one_does(nodes: Any, rows: Rows, spec: InputSpec) -> None:
    """Without dropout workers on two nodes have the losses of one in this process, but for rounding."""
    one, two = (fit_by_workers(rows, rows, settings, spec=spec, epochs=2) for settings in (ALONE, SETTINGS))
    assert [epoch.loss for epoch in two.epochs] == pytest.approx([epoch.loss for epoch in one.epochs], rel=1e-4)
    assert logits(two.model, rows[0]) == pytest.approx(logits(one.model, rows[0]), abs=1e-3)


def test_a_node_dies_amid_a_training(nodes: Any, rows: Rows, spec: InputSpec, tmp_path: Path) -> None:
    """The training ends and says why; the next one goes on after the last epoch saved, as if nothing had been."""
    checkpoint = Checkpoint(path=tmp_path / "training.pt", key="this")
    with node_killed(nodes, checkpoint), pytest.raises(ModelError, match=r"worker.*died.*checkpoint"):
        fit_by_workers(rows, None, SETTINGS, spec=spec, checkpoint=checkpoint)
    left = checkpoint.load()
    assert left is not None
    done = len(left["history"])
    assert 0 < done < SETTINGS.epochs
    nodes.grow(2)
    resumed = fit_by_workers(rows, None, SETTINGS, spec=spec, epochs=done + 2, checkpoint=checkpoint)
    losses = [epoch.loss for epoch in resumed.epochs]
    assert losses[:done] == [loss for loss, _ in left["history"]]
    assert len(losses) == done + 2
    whole = fit_by_workers(rows, None, ALONE, spec=spec, epochs=done + 2)
    assert losses == pytest.approx([epoch.loss for epoch in whole.epochs], rel=1e-3)
