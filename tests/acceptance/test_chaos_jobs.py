"""Jobs while everything around them is killed: the short runs of bench/chaos_jobs.py and bench/chaos_schedule.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import chaos_jobs, chaos_schedule

pytestmark = pytest.mark.services


def test_a_backfill_survives_the_death_of_everything(tmp_path: Path) -> None:
    """With each kind of process killed once, every slice is there once and equals an undisturbed run's."""
    report = chaos_jobs.run(tmp_path / "home", slices=60, accounts=200, payments=2_000, kills=5, workers=2)
    assert set(report.kills) == set(chaos_jobs.TARGETS)
    assert report.chunks == 180


def test_two_schedulers_run_every_tick_once(tmp_path: Path) -> None:
    """Through the death of two leaders every second has one tick, and each tick's job ended once."""
    report = chaos_schedule.run(tmp_path / "home", seconds=16.0, kill_every_s=6.0)
    assert report.kills == 2
    assert report.ticks >= 10
