"""Looks for better settings on folds of time inside the training period; the test period plays no part."""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.settings import TrainingSettings
from training.dataset import Dataset
from training.periods import Periods
from training.progress import Progress, no_progress

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

FOLDS = 3
FIRST_SHARE = 0.4
"""Each fold trains on everything before its own validation time; the first on this share of the period."""

STARTUP_TRIALS = 5


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search found: the settings to train with, and every trial as JSON, best first."""

    settings: TrainingSettings
    trials: tuple[dict[str, Any], ...]

    def best(self) -> float | None:
        """Mean validation AP of the best trial that came to its end."""
        return next((trial["average_precision"] for trial in self.trials if trial["state"] == "COMPLETE"), None)


def search_settings(
    known: Dataset,
    periods: Periods,
    spec: InputSpec,
    settings: TrainingSettings,
    *,
    minutes: float,
    folder: Path,
    trials: int | None = None,
    progress: Progress = no_progress,
) -> Search:
    """Try settings for at most `minutes`, or `trials` of them, by the mean AP on FOLDS folds; return the best.

    The first trial is `settings` itself, so that what is returned is at least as good on the folds. A trial that is
    under way when time is up is given up; without a finished one `settings` come back unchanged. The trials are kept in
    `folder`: a search that was killed goes on there, with the time that was left to it. Raises ModelError when a fold
    has no known fraud.
    """
    folds = _folds(known, periods)
    study = _study(folder, settings)
    used_s = sum(trial.duration.total_seconds() for trial in study.trials if trial.duration is not None)
    deadline = time.monotonic() + max(0.0, minutes * 60 - used_s)
    if not study.trials:
        study.enqueue_trial({name: getattr(settings, name) for name in _SPACE})

    def objective(trial: optuna.Trial) -> float:
        return _mean_ap(trial, folds, spec, settings, deadline=deadline, minutes=minutes, progress=progress)

    while time.monotonic() < deadline and (trials is None or _finished(study) < trials):
        study.optimize(objective, n_trials=1)
    found = _report(study)
    best = {} if not any(one["state"] == "COMPLETE" for one in found) else dict(study.best_params)
    log.info("search: %d trials, best %s", len(found), best or "none came to its end")
    return Search(settings=settings.model_copy(update=best), trials=found)


_SPACE: dict[str, Callable[[optuna.Trial], Any]] = {
    "learning_rate": lambda trial: trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
    "weight_decay": lambda trial: trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
    "dropout": lambda trial: trial.suggest_float("dropout", 0.0, 0.5),
    "hidden": lambda trial: trial.suggest_categorical("hidden", [16, 32, 64, 128]),
    "heads": lambda trial: trial.suggest_categorical("heads", [1, 2, 4]),
    "positive_weight_limit": lambda trial: trial.suggest_float("positive_weight_limit", 1.0, 30.0, log=True),
}


def _mean_ap(
    trial: optuna.Trial,
    folds: list[tuple[Dataset, Dataset]],
    spec: InputSpec,
    settings: TrainingSettings,
    *,
    deadline: float,
    minutes: float,
    progress: Progress,
) -> float:
    import optuna

    from training.fit import fit_payments

    tried = settings.model_copy(update={name: suggest(trial) for name, suggest in _SPACE.items()})

    def advance(_done: float, _total: float | None, text: str) -> None:
        left_s = deadline - time.monotonic()
        if left_s < 0:
            raise optuna.TrialPruned("time is up")
        progress(minutes - left_s / 60, minutes, f"search: trial {trial.number + 1}, {text}")

    reached: list[float] = []
    for number, (train, held_out) in enumerate(folds):
        rows, stop = (train.tuples, train.is_fraud), (held_out.tuples, held_out.is_fraud)
        fitted = fit_payments(rows, stop, tried, spec=spec, progress=advance)
        reached.append(fitted.epochs[fitted.best_epoch - 1].validation_ap)
        trial.report(sum(reached) / len(reached), number)
        if number + 1 < len(folds) and trial.should_prune():
            raise optuna.TrialPruned(f"below the others after {number + 1} folds")
    return sum(reached) / len(reached)


def _folds(known: Dataset, periods: Periods) -> list[tuple[Dataset, Dataset]]:
    """(training, validation) pairs: the validation times follow each other and end with the training period."""
    length = periods.train_to - periods.train_from
    cuts = [
        periods.train_from + int(length * (FIRST_SHARE + (1 - FIRST_SHARE) * number / FOLDS))
        for number in range(FOLDS + 1)
    ]
    folds = [(known.between(periods.train_from, cut), known.between(cut, after)) for cut, after in pairwise(cuts)]
    if not all(part.is_fraud.any() for fold in folds for part in fold):
        raise ModelError(
            f"a search needs known frauds in each of {FOLDS} parts of the training period: choose a longer one"
        )
    return folds


def _study(folder: Path, settings: TrainingSettings) -> optuna.Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = JournalStorage(JournalFileBackend(str(folder / "search.log")))
    return optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=STARTUP_TRIALS),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
    )


def _finished(study: optuna.Study) -> int:
    return sum(trial.state.is_finished() for trial in study.trials)


def _report(study: optuna.Study) -> tuple[dict[str, Any], ...]:
    found = [
        {
            "number": trial.number,
            "state": trial.state.name,
            "average_precision": trial.value if trial.value is not None else trial.intermediate_values.get(0),
            "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
            "settings": trial.params,
        }
        for trial in study.trials
    ]
    return tuple(sorted(found, key=lambda one: (one["state"] != "COMPLETE", -(one["average_precision"] or 0.0))))
