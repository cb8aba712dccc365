"""The network, its export, and the training loop."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graph_features.errors import ModelError
from graph_features.settings import TrainingSettings
from graph_features.tuples import InputTuples
from training.bundle import Bundle, read_info
from training.calibrate import carry_over, platt, sigmoid
from training.dataset import Dataset
from training.export import network_scores, without_neighbours, write_bundle
from training.fit import fit, logits
from training.metrics import average_precision
from training.model import NeighbourConv, Scaler
from training.scaling import ColumnScaling

NEIGHBOURS = 4


def test_scaler_standardises_and_flags_nulls() -> None:
    """Known values get mean 0 and deviation 1, after a logarithm where they reach far; nulls are 0 and flagged."""
    generator = np.random.default_rng(0)
    x = np.stack([generator.normal(3, 2, 500), np.exp(generator.normal(6, 2, 500))], axis=1).astype(np.float32)
    x[::5, 1] = np.nan
    scaling = ColumnScaling.measure(x)
    assert scaling.log.tolist() == [False, True]
    scaler = Scaler(2, len(scaling.null_columns))
    scaler.load(scaling)
    out = scaler(torch.from_numpy(x)).numpy()
    known = ~np.isnan(x[:, 1])
    np.testing.assert_allclose(out[:, 0].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(out[known, 1].std(), 1, atol=1e-3)
    np.testing.assert_allclose(out[~known, 1], 0, atol=1e-5)
    np.testing.assert_array_equal(out[:, 2], ~known)


def test_null_flags_are_shared_by_columns_that_are_null_together() -> None:
    """A view's columns, absent in the same rows, get one flag; another pattern gets its own; constants stay finite."""
    x = np.ones((8, 4), np.float32)
    x[:3, [0, 1]] = np.nan
    x[5:, 3] = np.nan
    scaling = ColumnScaling.measure(x)
    assert scaling.null_columns.tolist() == [0, 3]
    assert np.isfinite(scaling.std).all()
    assert (scaling.std > 0).all()


def test_attention_reads_only_its_own_edges() -> None:
    """What reaches an account depends on its own edges, whatever their order, and on nobody else's."""
    torch.manual_seed(0)
    conv = NeighbourConv(in_features=3, hidden=8, heads=2, slots=NEIGHBOURS).eval()
    centre = torch.randn(3, 8)
    index = torch.tensor([0, 0, 2, 2, 2])
    edge = torch.randn(5, 3)
    with torch.no_grad():
        out = conv(edge, centre, index)
        swapped = conv(edge[[1, 0, 2, 3, 4]], centre, index)
        other = edge.clone()
        other[2:] += 1
        changed = conv(other, centre, index)
        alone = conv(edge[:0], centre, index[:0])
    torch.testing.assert_close(out, swapped)
    torch.testing.assert_close(out[:2], changed[:2])
    assert not torch.allclose(out[2], changed[2])
    torch.testing.assert_close(out[1], alone[1])


def test_bundle_scores_like_the_network(
    make_bundle: Callable[..., Bundle], make_tuples: Callable[..., InputTuples], make_dataset: Callable[..., Dataset]
) -> None:
    """ONNX equals torch to 1e-6 for one payment, many, none, with and without any neighbour edge."""
    bundle = make_bundle()
    archive = torch.export.load(bundle.path / "model.pt2").module()
    many = make_tuples(300, seed=8)
    for tuples in (
        many,
        many.take(np.array([4])),
        without_neighbours(many),
        without_neighbours(many.take(np.array([0]))),
    ):
        expected = archive(*(torch.from_numpy(array) for array in tuples.feeds().values())).detach().numpy()
        np.testing.assert_allclose(bundle.score(tuples), expected, atol=1e-6)
        assert ((expected >= 0) & (expected <= 1)).all()
    assert bundle.score(many.take(np.empty(0, np.int64))).shape == (0,)


def test_scores_do_not_depend_on_the_batch(
    make_bundle: Callable[..., Bundle], make_tuples: Callable[..., InputTuples]
) -> None:
    """A payment scores the same alone as among others."""
    bundle, tuples = make_bundle(), make_tuples(40, seed=2)
    alone = np.concatenate([bundle.score(tuples.take(np.array([row]))) for row in range(40)])
    np.testing.assert_allclose(bundle.score(tuples), alone, atol=1e-6)


def test_training_is_deterministic(make_dataset: Callable[..., Dataset], quick: TrainingSettings) -> None:
    """The same seed gives the same weights, bit for bit; another seed does not."""
    dataset = make_dataset(500)
    rows = (dataset.tuples, dataset.is_fraud)
    first, second, other = (
        fit(rows, None, quick.model_copy(update={"seed": seed}), neighbours=NEIGHBOURS, epochs=2).model
        for seed in (1, 1, 2)
    )
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not torch.equal(first.head[0].weight, other.head[0].weight)


def test_training_leaves_torch_as_it_was(make_dataset: Callable[..., Dataset], quick: TrainingSettings) -> None:
    """Neither the caller's random state nor its choice of algorithms changes."""
    dataset = make_dataset(300)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    fit((dataset.tuples, dataset.is_fraud), None, quick, neighbours=NEIGHBOURS, epochs=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()


def test_learns_signal_but_not_noise(make_dataset: Callable[..., Dataset], quick: TrainingSettings) -> None:
    """On real labels the validation AP rises far above the base rate; on shuffled ones it stays near it."""
    train, test = make_dataset(2_000), make_dataset(2_000, seed=50)
    settings = quick.model_copy(update={"epochs": 8, "patience": 8, "learning_rate": 5e-3})
    base = float(test.is_fraud.mean())
    learned = fit((train.tuples, train.is_fraud), None, settings, neighbours=NEIGHBOURS, epochs=8).model
    shuffled_labels = np.random.default_rng(3).permutation(train.is_fraud)
    fooled = fit((train.tuples, shuffled_labels), None, settings, neighbours=NEIGHBOURS, epochs=8).model
    assert average_precision(test.is_fraud, logits(learned, test.tuples)) > 5 * base
    assert average_precision(test.is_fraud, logits(fooled, test.tuples)) < 2 * base


def test_early_stopping_keeps_the_best_epoch(make_dataset: Callable[..., Dataset], quick: TrainingSettings) -> None:
    """The weights returned are those of the best validation AP, not of the last epoch."""
    train, held_out = make_dataset(800), make_dataset(800, seed=9)
    settings = quick.model_copy(update={"epochs": 6, "patience": 2})
    fitted = fit((train.tuples, train.is_fraud), (held_out.tuples, held_out.is_fraud), settings, neighbours=NEIGHBOURS)
    best = max(epoch.validation_ap for epoch in fitted.epochs)
    assert fitted.epochs[fitted.best_epoch - 1].validation_ap == best
    assert average_precision(held_out.is_fraud, logits(fitted.model, held_out.tuples)) == pytest.approx(best)


def test_progress_and_interruption(make_dataset: Callable[..., Dataset], quick: TrainingSettings) -> None:
    """Progress counts steps up to the total, and Ctrl-C ends training at once."""
    dataset, seen = make_dataset(500), []

    def interrupt(done: float, total: float | None, text: str) -> None:
        seen.append((done, total))
        if done >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit((dataset.tuples, dataset.is_fraud), None, quick, neighbours=NEIGHBOURS, epochs=3, progress=interrupt)
    assert seen == [(float(step), 12.0) for step in range(1, 6)]
    assert not torch.are_deterministic_algorithms_enabled()


def test_without_fraud_it_says_so(make_dataset: Callable[..., Dataset], quick: TrainingSettings) -> None:
    """Training rows of one class are refused with what to do."""
    dataset = make_dataset(100)
    with pytest.raises(ModelError, match="0 frauds among 100"):
        fit((dataset.tuples, np.zeros(100, bool)), None, quick, neighbours=NEIGHBOURS)


def test_calibration_recovers_the_odds() -> None:
    """Platt scaling undoes a stretched and shifted logit."""
    generator = np.random.default_rng(1)
    true_logit = generator.normal(-2, 2, 20_000)
    is_fraud = generator.random(20_000) < sigmoid(true_logit)
    scale, shift = platt(3 * true_logit + 4, is_fraud)
    assert scale == pytest.approx(1 / 3, rel=0.1)
    assert shift == pytest.approx(-4 / 3, rel=0.1)


def test_calibration_of_a_flat_logit_stays_finite() -> None:
    """Logits of a barely trained network, close together and separable, end in probabilities and not in certainty."""
    is_fraud = np.arange(500) < 5
    logit = -0.1 + 0.01 * is_fraud + np.random.default_rng(2).normal(0, 1e-4, 500)
    scale, shift = platt(logit, is_fraud)
    score = sigmoid(scale * logit + shift)
    assert score[is_fraud].min() > 0.5
    assert score[~is_fraud].max() < 0.5
    assert 0 < score.min() < score.max() < 1


def test_calibration_is_carried_over() -> None:
    """A second network whose logits are the first's, stretched and moved, gets the same scores."""
    first = np.random.default_rng(0).normal(-3, 1, 500)
    second = 2.5 * first + 7
    scale, shift = carry_over(0.8, -0.5, first, second)
    np.testing.assert_allclose(sigmoid(scale * second + shift), sigmoid(0.8 * first - 0.5))


def test_calibration_never_turns_the_ranking() -> None:
    """A model that ranks the wrong way keeps its order; one class alone changes nothing."""
    logit = np.linspace(-3, 3, 200)
    assert platt(logit, logit < -2.5)[0] > 0
    assert platt(logit, np.zeros(200, bool)) == (1.0, 0.0)


def test_wrong_export_is_not_written(
    make_bundle: Callable[..., Bundle], make_dataset: Callable[..., Dataset], quick: TrainingSettings, tmp_path: Path
) -> None:
    """A network that scores nothing but NaN has no bundle, and none is left half-written."""
    bundle, dataset = make_bundle(), make_dataset(200)
    fitted = fit((dataset.tuples, dataset.is_fraud), None, quick, neighbours=NEIGHBOURS, epochs=1)
    with torch.no_grad():
        fitted.model.head[0].bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="differs from the network"):
        write_bundle(tmp_path / "broken", fitted.model, bundle.info, dataset.tuples.take(np.arange(10)))
    assert list(tmp_path.iterdir()) == []


def test_bundle_describes_itself(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """spec.json survives the trip, and a folder that is no bundle or of another format is refused by name."""
    bundle = Bundle.load(shutil.copytree(make_bundle().path, tmp_path / "bundle"))
    assert read_info(bundle.path) == bundle.info
    replace(bundle.info, format_version=99).save(bundle.path)
    with pytest.raises(ModelError, match="expected bundle format 1, got 99"):
        Bundle.load(bundle.path)
    (bundle.path / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx missing"):
        Bundle.load(bundle.path)


def test_network_scores_match_logits(make_dataset: Callable[..., Dataset], quick: TrainingSettings) -> None:
    """The calibrated score is the sigmoid of the scaled logit."""
    dataset = make_dataset(100)
    model = fit((dataset.tuples, dataset.is_fraud), None, quick, neighbours=NEIGHBOURS, epochs=1).model
    model.calibrate(0.5, -1.0)
    expected = sigmoid(0.5 * logits(model, dataset.tuples) - 1.0)
    np.testing.assert_allclose(network_scores(model, dataset.tuples), expected, atol=1e-6)
