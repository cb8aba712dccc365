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
from training.dataset import Dataset
from training.promote import Gates, judge

OPEN = Gates(
    least_frauds=1,
    largest_average_precision_drop=1,
    largest_card_precision_drop=1,
    largest_calibration_error=1,
    largest_latency_ms_per_1000=1e9,
    largest_score_shift=1,
)
"""Every gate so wide that nothing fails it."""


class Fixed(Bundle):
    """A bundle whose scores are given: what gates do must not depend on how well a network happens to train."""

    def __init__(self, info: BundleInfo, score: npt.NDArray[np.float32]) -> None:
        self.info, self._score = info, score

    def score(self, tuples: InputTuples) -> npt.NDArray[np.float32]:
        return self._score[: len(tuples)]


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
    promotion = judge("m", "2", "1", good, bad, window, OPEN)
    assert promotion.promoted
    assert [figures.version for figures in promotion.figures] == ["2", "1"]
    assert promotion.figures[0].average_precision == pytest.approx(1)


@pytest.mark.parametrize(
    ("gate", "value", "reason"),
    [
        ("least_frauds", 10_000, "known frauds in the window"),
        ("least_average_precision", 0.99, "average precision"),
        ("largest_calibration_error", 0.01, "calibration error"),
        ("largest_latency_ms_per_1000", 0.0, "ms per 1,000"),
        ("largest_average_precision_drop", 0.1, "version 1 has 1.0000"),
        ("largest_card_precision_drop", 0.001, "CP@100"),
        ("largest_score_shift", 0.0, "scores move by"),
    ],
)
def test_each_gate_refuses_on_its_own(
    good: Fixed, bad: Fixed, window: Dataset, gate: str, value: float, reason: str
) -> None:
    """A worse challenger fails exactly the gate that is closed, and the reason says which."""
    promotion = judge("m", "2", "1", bad, good, window, replace(OPEN, **{gate: value}))
    assert not promotion.promoted
    assert len(promotion.reasons) == 1
    assert reason in promotion.reasons[0]


def test_first_model_needs_no_comparison(good: Fixed, window: Dataset) -> None:
    """Without a champion only the absolute gates count."""
    promotion = judge("m", "1", None, good, None, window, replace(OPEN, largest_score_shift=0))
    assert promotion.promoted
    assert promotion.score_shift is None


def test_a_model_without_a_figure_is_refused(good: Fixed, window: Dataset) -> None:
    """A window without fraud has no average precision, and what cannot be measured does not pass."""
    empty = replace(window, is_fraud=np.zeros(len(window), bool))
    promotion = judge("m", "1", None, good, None, empty, replace(OPEN, least_frauds=0))
    assert not promotion.promoted
    assert "average precision nan" in promotion.reasons[0]


def test_gates_come_from_a_file(tmp_path: Path) -> None:
    """A file sets what it names; unknown gates and values that are no numbers are refused by name."""
    path = tmp_path / "gates.yaml"
    path.write_text("window_days: 3\nleast_average_precision: 0.4\n")
    assert Gates.load(path) == Gates(window_days=3, least_average_precision=0.4)
    assert Gates.load(None) == Gates()
    for text, field in (("windw: 3", "gates.windw"), ("window_days: soon", "gates.window_days"), ("- 3", "gates")):
        path.write_text(text)
        with pytest.raises(InvalidInputError) as caught:
            Gates.load(path)
        assert caught.value.field == field
