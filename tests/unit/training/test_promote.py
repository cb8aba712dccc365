"""Gates: what a challenger must hold, and what is said when it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from graph_features.errors import InvalidInputError
from graph_features.input_spec import InputSpec
from graph_features.tuples import InputTuples
from training.bundle import Bundle, BundleInfo
from training.compare import measure
from training.dataset import Dataset
from training.gates import Gates
from training.promote import Promotion
from training.promote import judge as judge_figures

OPEN = Gates(
    least_frauds=1,
    largest_average_precision_drop=1,
    largest_card_precision_drop=1,
    largest_calibration_error=1,
    largest_calibration_error_growth=1,
    largest_latency_ms_per_1000=1e9,
    largest_latency_ratio=1e9,
    largest_score_shift=1,
)
"""Every gate so wide that nothing fails it."""


class Fixed(Bundle):
    """A bundle whose scores are given: what gates do must not depend on how well a network happens to train."""

    def __init__(self, info: BundleInfo, score: npt.NDArray[np.float32]) -> None:
        self.info, self._score = info, score

    def score(self, tuples: InputTuples) -> npt.NDArray[np.float32]:
        return self._score[: len(tuples)]


def opened(**gates: float) -> Gates:
    """Gates of which only the named ones can fail anything."""
    return OPEN.model_copy(update=gates)


def judge(new: Bundle, old: Bundle | None, window: Dataset, gates: Gates) -> Promotion:
    """Version 2 against version 1 on a window."""
    found = measure(("2", new), None if old is None else ("1", old), window, window)
    return judge_figures("m", "2", "1", found, gates)


@pytest.fixture
def info(spec: InputSpec) -> BundleInfo:
    return BundleInfo(inputs=spec, model={}, threshold=0.5, calibration={}, git_revision="", seed=0)


@pytest.fixture
def window(make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(3_000, seed=4)


@pytest.fixture
def good(info: BundleInfo, window: Dataset) -> Fixed:
    """Ranks perfectly and is calibrated."""
    return Fixed(info, np.where(window.is_fraud, 0.9, 0.05).astype(np.float32))


@pytest.fixture
def bad(info: BundleInfo, window: Dataset) -> Fixed:
    """Ranks at random."""
    return Fixed(info, np.random.default_rng(0).random(len(window)).astype(np.float32))


def test_better_challenger_passes(good: Fixed, bad: Fixed, window: Dataset) -> None:
    """With gates wide open everything passes, and both models' figures are reported."""
    promotion = judge(good, bad, window, OPEN)
    assert promotion.promoted
    found = promotion.comparison
    assert found is not None
    assert found.champion is not None
    assert (found.challenger.version, found.champion.version) == ("2", "1")
    assert found.challenger.average_precision == pytest.approx(1)
    assert found.gain_interval is not None
    assert 0 < found.gain_interval[0] <= 1 - found.champion.average_precision <= found.gain_interval[1]


@pytest.mark.parametrize(
    ("gate", "value", "reason"),
    [
        ("least_frauds", 10_000, "known frauds in the window"),
        ("least_average_precision", 0.99, "average precision"),
        ("largest_calibration_error", 0.01, "calibration error"),
        ("largest_latency_ms_per_1000", 0.0, "ms per 1,000"),
        ("largest_average_precision_drop", 0.1, "version 1 has 1.0000"),
        ("largest_card_precision_drop", 0.001, "CP@100"),
        ("largest_calibration_error_growth", 0.01, "calibration error"),
        ("largest_latency_ratio", 0.0, "times as long"),
        ("largest_score_shift", 0.0, "scores move by"),
    ],
)
def test_each_gate_refuses_on_its_own(
    good: Fixed, bad: Fixed, window: Dataset, gate: str, value: float, reason: str
) -> None:
    """A worse challenger fails exactly the gate that is closed, and the reason says which."""
    promotion = judge(bad, good, window, opened(**{gate: value}))
    assert not promotion.promoted
    assert len(promotion.reasons) == 1
    assert reason in promotion.reasons[0]


def test_first_model_needs_no_comparison(good: Fixed, window: Dataset) -> None:
    """Without a champion only the absolute gates count."""
    promotion = judge(good, None, window, opened(largest_score_shift=0))
    assert promotion.promoted
    assert promotion.comparison is not None
    assert promotion.comparison.score_shift is None


def test_a_model_without_a_figure_is_refused(good: Fixed, window: Dataset) -> None:
    """A window without fraud has no average precision, and what cannot be measured does not pass."""
    empty = replace(window, is_fraud=np.zeros(len(window), bool))
    promotion = judge(good, None, empty, opened(least_frauds=0))
    assert not promotion.promoted
    assert "average precision nan" in promotion.reasons[0]


def test_gates_come_from_a_file(tmp_path: Path) -> None:
    """A file sets what it names; unknown gates and values that are no numbers are refused by name."""
    path = tmp_path / "gates.yaml"
    path.write_text("window_days: 3\nleast_average_precision: 0.4\n")
    assert Gates.load(path) == Gates(window_days=3, least_average_precision=0.4)
    assert Gates.load(None) == Gates()
    wrong = {
        "windw: 3": "gates.windw",
        "window_days: soon": "gates.window_days",
        "window_days: 0": "gates.window_days",
        "least_frauds: true": "gates.least_frauds",
        "largest_score_shift: 1.5": "gates.largest_score_shift",
        "largest_latency_ratio: .inf": "gates.largest_latency_ratio",
        "- 3": "gates",
        "a: [": "gates",
    }
    for text, field in wrong.items():
        path.write_text(text)
        with pytest.raises(InvalidInputError) as caught:
            Gates.load(path)
        assert caught.value.field == field


def test_a_window_without_payments_refuses(good: Fixed) -> None:
    """Where the models have been trained on every matured payment there is nothing to compare, and nothing passes."""
    promotion = judge_figures("m", "2", "1", None, OPEN)
    assert not promotion.promoted
    assert "training periods" in promotion.reasons[0]
