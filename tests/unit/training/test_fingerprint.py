"""What tells one training from another: the version that `reuse` takes, and the checkpoints that are taken up."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from graph_features.backends import open_records
from graph_features.settings import PlatformSettings, TrainingSettings
from training.history import current_spec
from training.periods import Periods
from training.train import _fingerprint


def test_a_search_is_another_training(tmp_path: Path) -> None:
    """A model whose settings were searched for must not stand for one trained with those that were given, or back."""
    platform, settings = PlatformSettings(home=tmp_path), TrainingSettings()
    records = open_records(platform)
    records.create_schema()
    records.close()
    periods = Periods.plan(
        train_from=datetime(2026, 1, 1, tzinfo=UTC),
        train_to=datetime(2026, 2, 1, tzinfo=UTC),
        validation_from=None,
        label_cut=None,
        test_from=None,
        test_to=None,
        settings=settings,
    )

    def of(search_minutes: float | None, seed: int = 0) -> str:
        given = settings.model_copy(update={"seed": seed})
        return _fingerprint(platform, current_spec(given), periods, given, "all", search_minutes)

    assert of(None) == of(None)
    assert of(30.0) == of(30.0)
    assert len({of(None), of(None, seed=1), of(30.0), of(60.0)}) == 4
