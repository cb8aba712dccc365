"""Climbs the ladder on stored rows: every rung fitted on a model's training period, measured on a later one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from graph_features.settings import PlatformSettings, TrainingSettings, load
from training.assess import evaluation_period, registered
from training.bundle import Bundle
from training.dataset import Dataset
from training.evaluate import Evaluation, Protocol, evaluate
from training.history import History, open_history
from training.ladder import RUNGS, Workshop, climb, probability
from training.metrics import budget_threshold
from training.progress import Progress, no_progress
from training.registry import CHAMPION, Registry


@dataclass(frozen=True, kw_only=True)
class LadderReport:
    """Figures per rung, from the bottom up, on `payments` test payments; the MLflow run that holds them.

    Alerts are those of the day's budget (RINGFENCE_TRAIN_ALERTS_PER_DAY); scores of different rungs have no unit in
    common, so that calibration means nothing here.
    """

    name: str
    version: str
    payments: int
    frauds: int
    results: Mapping[str, Evaluation]
    run_id: str


FIGURES = ("roc_auc", "average_precision", "card_precision", "alert_precision", "alert_recall")


def evaluate_ladder(
    platform: PlatformSettings,
    *,
    test_from: datetime,
    test_to: datetime,
    version: str | None = None,
    alias: str = CHAMPION,
    label_cut: datetime | None = None,
    protocol: Protocol = "all",
    settings: TrainingSettings | None = None,
    progress: Progress = no_progress,
) -> LadderReport:
    """Fit every rung as the version (or the one behind `alias`) was trained, test on [test_from, test_to), log it.

    Inputs, periods, label cut and settings are the version's own; its network is trained anew, so that rungs that read
    it can be. Raises ModelError when there is no such model or no labelled payment.
    """
    settings = settings or load(TrainingSettings)
    name = settings.model_name
    version, bundle = registered(platform, name, version, alias)
    with open_history(platform, settings) as history:
        known = _training_period(history, bundle, progress)
        test = evaluation_period(history, bundle, test_from, test_to, label_cut, protocol, progress)
    shop = Workshop(
        spec=bundle.info.inputs,
        known=known,
        validation_from_ms=bundle.info.window["validation_from"],
        settings=TrainingSettings(**{**bundle.info.settings, "seed": bundle.info.seed, "device": settings.device}),
    )
    results = {}
    for at, (rung, score) in enumerate(climb(shop, test), start=1):
        progress(float(at), float(len(RUNGS)), rung)
        results[rung] = _measure(test, probability(score), settings)
    run_id = Registry.open(platform.home).log_figures(
        experiment=settings.experiment,
        run_name=f"ladder of {name} {version}",
        parameters={"version": version, "test_from": test_from.isoformat(), "test_to": test_to.isoformat()},
        table={rung: {figure: getattr(found, figure) for figure in FIGURES} for rung, found in results.items()},
        file="ladder.json",
    )
    return LadderReport(
        name=name, version=version, payments=len(test), frauds=int(test.is_fraud.sum()), results=results, run_id=run_id
    )


def _training_period(history: History, bundle: Bundle, progress: Progress) -> Dataset:
    window = bundle.info.window
    return history.read(
        bundle.info.inputs,
        start_ms=window["train_from"],
        end_ms=window["train_to"],
        label_cut_ms=window["label_cut"],
        name="training period",
        progress=progress,
    )


def _measure(
    test: Dataset, score: np.ndarray[tuple[int], np.dtype[np.float64]], settings: TrainingSettings
) -> Evaluation:
    threshold = budget_threshold(
        score, test.event_ms, alerts_per_day=settings.alerts_per_day, largest_share=settings.largest_alert_share
    )
    return evaluate(test, score, threshold=threshold)
