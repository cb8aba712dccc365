"""Periods follow each other in time, or say which one does not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from graph_features.clock import DAY_MS, to_ms
from graph_features.errors import InvalidInputError
from graph_features.settings import TrainingSettings
from training.periods import Periods


def _plan(**given: datetime) -> Periods:
    empty: dict[str, Any] = dict.fromkeys(
        ("train_from", "train_to", "validation_from", "label_cut", "test_from", "test_to")
    )
    settings = TrainingSettings(label_maturity_s=7 * 86_400, validation_share=0.25)
    return Periods.plan(**{**empty, **given}, settings=settings)


def _day(number: int) -> datetime:
    return datetime(2018, 7, number, tzinfo=UTC)


def test_defaults_leave_time_for_labels() -> None:
    """Validation is the last quarter, the cut a maturity after training, and testing begins there."""
    periods = _plan(train_from=_day(1), train_to=_day(9), test_to=_day(20))
    assert periods.validation_from == to_ms(_day(7))
    assert periods.label_cut == periods.test_from == to_ms(_day(16))
    assert periods.test_to - periods.test_from == 4 * DAY_MS


def test_without_a_test_end_nothing_is_tested() -> None:
    """The test period is empty unless its end is given."""
    periods = _plan(train_from=_day(1), train_to=_day(9))
    assert periods.test_from == periods.test_to


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"train_from": _day(9), "train_to": _day(1)}, "validation_from"),
        ({"train_from": _day(1), "train_to": _day(9), "validation_from": _day(9)}, "train_to"),
        ({"train_from": _day(1), "train_to": _day(9), "test_from": _day(8), "test_to": _day(20)}, "test_from"),
        ({"train_from": _day(1), "train_to": _day(9), "test_from": _day(18), "test_to": _day(17)}, "test_to"),
    ],
)
def test_disorder_is_named(given: dict[str, datetime], field: str) -> None:
    """Overlapping or reversed periods are refused by the field that is wrong."""
    with pytest.raises(InvalidInputError) as caught:
        _plan(**given)
    assert caught.value.field == field
