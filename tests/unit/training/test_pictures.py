"""What a run logs beside its figures: pictures, importance, figures per scenario, the network's own view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graph_features.errors import InvalidInputError, ModelError
from graph_features.input_spec import InputSpec
from graph_features.settings import TrainingSettings
from graph_features.tuples import InputTuples
from training.bundle import Bundle, ordinary_payment
from training.dataset import Dataset
from training.fit import fit_payments, hidden, logits
from training.importance import importance
from training.metrics import average_precision
from training.plots import write_plots
from training.registry import Registry
from training.scenarios import read_scenarios, scenario_figures


def test_pictures_are_written(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    """Each picture is a PNG; what nothing is known of is left out, and without fraud there is none."""
    test = make_dataset(400)
    score = np.random.default_rng(0).random(400)
    seen = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
    paths = write_plots(tmp_path, test, score, title="t", importance={"pair": 0.1, "payment": -0.01}, hidden=seen)
    assert set(paths) == {"precision_recall", "calibration", "card_precision", "importance", "embedding_map"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths.values())
    assert "importance" not in write_plots(tmp_path, test, score, title="t")
    assert write_plots(tmp_path, replace(test, is_fraud=np.zeros(400, bool)), score, title="t") == {}


def test_importance_is_the_ap_that_goes_with_a_group(
    make_dataset: Callable[..., Dataset], make_bundle: Callable[..., Bundle]
) -> None:
    """A group that fraud does not depend on is worth nothing; the whole list is in order of what it is worth."""
    bundle, dataset = make_bundle(), make_dataset(800, seed=3)
    score = bundle.score(dataset.tuples)
    lost = importance(bundle, dataset)
    assert list(lost.values()) == sorted(lost.values(), reverse=True)
    bare = bundle.score(replace(dataset.tuples, neighbour_x=dataset.tuples.neighbour_x[:0],
                                neighbour_index=dataset.tuples.neighbour_index[:0]))  # fmt: skip
    expected = average_precision(dataset.is_fraud, score) - average_precision(dataset.is_fraud, bare)
    assert lost["neighbours"] == pytest.approx(expected)
    assert importance(bundle, replace(dataset, is_fraud=np.zeros(800, bool))) == {}


def test_the_ordinary_payment_is_the_median(make_tuples: Callable[..., InputTuples]) -> None:
    """Every input is the lower median of its known values, null where most are null, and no neighbour is there."""
    tuples = make_tuples(41)
    tuples.sender_x[:30, 1] = np.nan
    usual = ordinary_payment(tuples)
    known = np.sort(tuples.receiver_x[:, 0][~np.isnan(tuples.receiver_x[:, 0])])
    assert usual.receiver_x[0, 0] == known[(len(known) - 1) // 2]
    assert np.isnan(usual.sender_x[0, 1])
    assert (len(usual), len(usual.neighbour_index)) == (1, 0)


def test_hidden_is_what_the_last_layer_sees(
    make_dataset: Callable[..., Dataset], quick: TrainingSettings, spec: InputSpec
) -> None:
    """Put through the last layer it gives the logits."""
    dataset = make_dataset(200)
    model = fit_payments((dataset.tuples, dataset.is_fraud), None, quick, spec=spec, epochs=1).model
    last = model.head[-1]
    seen = hidden(model, dataset.tuples)
    again = seen @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    np.testing.assert_allclose(again[:, 0], logits(model, dataset.tuples), atol=1e-5)


def test_figures_per_scenario(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    """Each scenario is ranked against genuine payments alone; payments that the file does not name count as genuine."""
    test = make_dataset(300)
    fraud = np.flatnonzero(test.is_fraud)
    first, second = fraud[::2], fraud[1::2]
    names = {
        **{test.transaction_id[row]: "card" for row in first},
        **{test.transaction_id[row]: "ring" for row in second},
    }
    path = tmp_path / "truth.parquet"
    pq.write_table(pa.table({"transaction_id": list(names), "scenario": list(names.values())}), path)
    score = np.where(np.isin(np.arange(300), first), 0.9, 0.1)
    found = scenario_figures(test, score, read_scenarios(path), threshold=0.5)
    assert (found["frauds_card"], found["recall_card"], found["average_precision_card"]) == (len(first), 1, 1)
    assert (found["frauds_ring"], found["recall_ring"]) == (len(second), 0)
    assert found["average_precision_ring"] == pytest.approx(len(second) / (300 - len(first)))
    pq.write_table(pa.table({"transaction_id": ["a"]}), path)
    with pytest.raises(InvalidInputError, match="scenario"):
        read_scenarios(path)


def test_a_bundle_whose_graphs_differ_is_not_registered(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of one network beside the graph of another are found out before anything is logged."""
    import shutil

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mixed = tmp_path / "mixed"
    shutil.copytree(make_bundle(1).path, mixed)
    shutil.copy(make_bundle(2).path / "model.pt2", mixed / "model.pt2")
    registry = Registry.open(tmp_path / "home")
    with pytest.raises(ModelError, match="differ by"):
        registry.log(Bundle.load(mixed), experiment="e", name="m", parameters={}, metrics={}, history={}, plots={})
    assert registry.versions("m") == []
