"""Trains a model on a period, tests it on a later one, and registers it. What `ringfence train` and a job call."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.backends import open_records
from graph_features.clock import MAX_EVENT_MS, from_ms
from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.settings import PlatformSettings, TrainingSettings, load
from graph_features.tuples import InputTuples
from training.bundle import Bundle, BundleInfo
from training.calibrate import carry_over, platt, sigmoid
from training.checkpoint import Checkpoint, checkpoint_folder
from training.dataset import Dataset
from training.evaluate import Evaluation, Protocol, evaluate, unknown
from training.history import current_spec, open_history
from training.importance import importance
from training.metrics import budget_threshold
from training.periods import Periods
from training.plots import write_plots
from training.progress import Progress, no_progress
from training.registry import Registry, git_revision
from training.scenarios import scenario_figures

log = logging.getLogger(__name__)

EXPORT_SAMPLE = 256
"""Payments on which the exported graphs are compared with the network."""

FINGERPRINT = "ringfence.fingerprint"
REPORT = "ringfence.report"
REPORTED = (
    *("train_rows", "train_frauds", "left_out", "best_epoch", "validation_average_precision", "threshold", "device"),
)
"""What the tag REPORT keeps of a TrainReport."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trained, calibrated, exported model, and how it came about."""

    bundle: Bundle
    curves: dict[str, list[float]]
    best_epoch: int
    validation_average_precision: float
    device: str
    trials: tuple[dict[str, Any], ...] = ()
    """Of the search for settings, if there was one."""
    hidden: Callable[[InputTuples], npt.NDArray[np.float32]] | None = None
    """What the network makes of payments before its last layer; see training.fit.hidden."""
    scenarios: pa.Table | None = None
    """transaction_id and scenario, where scenarios are known."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What came out. `test` is None without a test period; run and version are None unless registered."""

    periods: Periods
    bundle: Path
    run_id: str | None
    version: str | None
    train_rows: int
    train_frauds: int
    left_out: int
    best_epoch: int
    validation_average_precision: float
    threshold: float
    device: str
    test: Evaluation | None

    @classmethod
    def of(
        cls,
        periods: Periods,
        bundle: Path,
        run_id: str | None,
        version: str | None,
        known: Dataset,
        candidate: Candidate,
        test: Evaluation | None,
    ) -> TrainReport:
        """The report of one training; `bundle` is where its bundle came to lie."""
        return cls(
            periods=periods,
            bundle=bundle,
            run_id=run_id,
            version=version,
            train_rows=len(known),
            train_frauds=int(known.is_fraud.sum()),
            left_out=known.left_out,
            best_epoch=candidate.best_epoch,
            validation_average_precision=candidate.validation_average_precision,
            threshold=candidate.bundle.info.threshold,
            device=candidate.device,
            test=test,
        )


def train_model(
    platform: PlatformSettings,
    *,
    train_from: datetime,
    train_to: datetime,
    validation_from: datetime | None = None,
    test_from: datetime | None = None,
    test_to: datetime | None = None,
    label_cut: datetime | None = None,
    protocol: Protocol = "all",
    seed: int | None = None,
    register: bool = True,
    reuse: bool = False,
    search_minutes: float | None = None,
    scenarios: pa.Table | None = None,
    settings: TrainingSettings | None = None,
    progress: Progress = no_progress,
) -> TrainReport:
    """Train on [train_from, train_to) with the labels known before `label_cut`, test on [test_from, test_to).

    Defaults: validation is the last share of the training period (RINGFENCE_TRAIN_VALIDATION_SHARE), the label cut is
    train_to plus the label maturity, the test period begins at the label cut; without `test_to` nothing is tested. Test
    labels are those known by now. The same data, settings and seed give the same model on a CPU. Raises ModelError when
    a period is empty or holds no fraud to learn from. An interrupted call registers nothing; the same call goes on
    where the last epoch ended. With `reuse`, a version that was trained on exactly this (records, features, periods,
    settings) is returned in place of a new one. With `search_minutes` settings are looked for first, for so long, on
    folds of the training period. `scenarios` (see training.scenarios) adds figures per scenario of the test's frauds.
    """
    settings = settings or load(TrainingSettings)
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    periods = Periods.plan(
        train_from=train_from,
        train_to=train_to,
        validation_from=validation_from,
        label_cut=label_cut,
        test_from=test_from,
        test_to=test_to,
        settings=settings,
    )
    spec = current_spec(settings)
    fingerprint = _fingerprint(platform, spec, periods, settings, protocol)
    if reuse and (earlier := _trained_before(platform, fingerprint, periods, settings)) is not None:
        return earlier
    known, test = read_periods(platform, spec, periods, protocol, settings, progress)
    with (
        checkpoint_folder(platform.home, fingerprint) as left,
        tempfile.TemporaryDirectory(prefix="ringfence-train-") as scratch,
    ):
        searched = None
        if search_minutes is not None:
            from training.search import search_settings

            searched = search_settings(
                known, periods, spec, settings, minutes=search_minutes, folder=left, progress=progress
            )
            settings = searched.settings
        candidate = make_candidate(known, periods, spec, settings, Path(scratch), progress, checkpoints=left)
        trials = () if searched is None else searched.trials
        candidate = replace(candidate, trials=trials, scenarios=scenarios)
        result = None
        if test is not None:
            result = evaluate(test, candidate.bundle.score(test.tuples), threshold=candidate.bundle.info.threshold)
            candidate = replace(candidate, bundle=with_metrics(candidate.bundle, result))
        progress(0.0, None, "registering")
        run_id, version, path = store_candidate(
            platform, candidate, known, test, periods, settings, register, Path(scratch)
        )
    report = TrainReport.of(periods, path, run_id, version, known, candidate, result)
    if version is not None:
        tags = {FINGERPRINT: fingerprint, REPORT: json.dumps({name: getattr(report, name) for name in REPORTED})}
        Registry.open(platform.home).tag(settings.model_name, version, tags)
    return report


def _fingerprint(
    platform: PlatformSettings, spec: InputSpec, periods: Periods, settings: TrainingSettings, protocol: Protocol
) -> str:
    """What decides how a model comes out: the records, the features, the periods and the settings."""
    records = open_records(platform)
    try:
        max_seq = records.max_seq()
    finally:
        records.close()
    parts = [max_seq, spec.to_json(), periods.to_json(), settings.model_dump(mode="json"), protocol]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _trained_before(
    platform: PlatformSettings, fingerprint: str, periods: Periods, settings: TrainingSettings
) -> TrainReport | None:
    """The report of the newest version with this fingerprint, None when there is none."""
    registry = Registry.open(platform.home)
    for found in registry.versions(settings.model_name):
        tags = registry.tags(settings.model_name, found.version)
        if tags.get(FINGERPRINT) != fingerprint:
            continue
        folder = registry.download(settings.model_name, found.version)
        metrics = Bundle.load(folder).info.metrics
        return TrainReport(
            periods=periods,
            bundle=folder,
            run_id=found.run_id,
            version=str(found.version),
            test=Evaluation.from_figures(metrics) if metrics else None,
            **json.loads(tags[REPORT]),
        )
    return None


def read_periods(
    platform: PlatformSettings,
    spec: InputSpec,
    periods: Periods,
    protocol: Protocol,
    settings: TrainingSettings,
    progress: Progress,
) -> tuple[Dataset, Dataset | None]:
    """Read training and validation rows in one, and test rows if there is a test period."""
    with open_history(platform, settings) as history:
        known = history.read(
            spec,
            start_ms=periods.train_from,
            end_ms=periods.train_to,
            label_cut_ms=periods.label_cut,
            name="training period",
            progress=progress,
        )
        if periods.test_to <= periods.test_from:
            return known, None
        test = history.read(
            spec,
            start_ms=periods.test_from,
            end_ms=periods.test_to,
            label_cut_ms=MAX_EVENT_MS,
            name="test period",
            progress=progress,
        )
        if protocol == "handbook":
            records = history.records
            keep = unknown(test, records, train_from_ms=periods.train_from, train_to_ms=periods.train_to)
            test = test.take(np.flatnonzero(keep))
        return known, test


def make_candidate(
    known: Dataset,
    periods: Periods,
    spec: InputSpec,
    settings: TrainingSettings,
    scratch: Path,
    progress: Progress,
    *,
    checkpoints: Path | None = None,
) -> Candidate:
    """Fit with early stopping, calibrate on validation rows, fit again on all rows, export into `scratch`/bundle.

    Where the fits stand is kept in the folder `checkpoints`, if one is given.
    """
    # torch takes seconds to import; a caller that only plans or reads reports does without.
    from training.export import write_bundle
    from training.fit import hidden, logits
    from training.team import fit_by_workers

    train = known.between(periods.train_from, periods.validation_from)
    validation = known.between(periods.validation_from, periods.train_to)
    if not validation.is_fraud.any():
        raise ModelError(
            f"no known fraud from {from_ms(periods.validation_from)} to {from_ms(periods.train_to)} to validate on: "
            "move validation_from, or choose a longer training period"
        )
    rows, held_out_rows = (train.tuples, train.is_fraud), (validation.tuples, validation.is_fraud)
    kept = _checkpoints(checkpoints, settings)
    fitted = fit_by_workers(rows, held_out_rows, settings, spec=spec, checkpoint=kept.get("fit"), progress=progress)
    held_out = logits(fitted.model, validation.tuples)
    scale, shift = platt(held_out, validation.is_fraud)
    curves = {
        "loss": [epoch.loss for epoch in fitted.epochs],
        "validation_average_precision": [epoch.validation_ap for epoch in fitted.epochs],
    }
    best = fitted.best_epoch
    if settings.refit:
        # The last days before the model goes live are the ones most like what it will see: they must not go unused.
        everything = (known.tuples, known.is_fraud)
        again_from = kept.get("refit")
        fitted = fit_by_workers(
            everything, None, settings, spec=spec, epochs=best, checkpoint=again_from, progress=progress
        )
        genuine = ~validation.is_fraud
        again = logits(fitted.model, validation.tuples)[genuine]
        fitted.model.calibrate(*carry_over(scale, shift, held_out[genuine], again))
    else:
        fitted.model.calibrate(scale, shift)
    info = BundleInfo(
        inputs=spec,
        model=fitted.model.config.to_json(),
        threshold=_threshold(sigmoid(scale * held_out + shift), validation, settings),
        calibration=dict(zip(("scale", "shift"), fitted.model.calibration.tolist(), strict=True)),
        git_revision=git_revision(),
        seed=settings.seed,
        window=periods.to_json(),
        settings=settings.model_dump(mode="json"),
    )
    progress(0.0, None, "exporting")
    sample = np.linspace(0, len(known) - 1, min(EXPORT_SAMPLE, len(known))).astype(np.int64)
    return Candidate(
        bundle=write_bundle(scratch / "bundle", fitted.model, info, known.tuples.take(np.unique(sample))),
        curves=curves,
        best_epoch=best,
        validation_average_precision=curves["validation_average_precision"][best - 1],
        device=fitted.device,
        hidden=partial(hidden, fitted.model),
    )


def _checkpoints(folder: Path | None, settings: TrainingSettings) -> dict[str, Checkpoint]:
    if folder is None:
        return {}
    key = settings.model_dump_json()
    return {name: Checkpoint(path=folder / f"{name}.pt", key=key) for name in ("fit", "refit")}


def with_metrics(bundle: Bundle, result: Evaluation) -> Bundle:
    """Write the test figures into the bundle's own description."""
    info = replace(bundle.info, metrics=result.figures())
    info.save(bundle.path)
    return Bundle.load(bundle.path)


def _threshold(score: npt.NDArray[np.float64], validation: Dataset, settings: TrainingSettings) -> float:
    return budget_threshold(
        score.astype(np.float32),
        validation.event_ms,
        alerts_per_day=settings.alerts_per_day,
        largest_share=settings.largest_alert_share,
    )


def store_candidate(
    platform: PlatformSettings,
    candidate: Candidate,
    known: Dataset,
    test: Dataset | None,
    periods: Periods,
    settings: TrainingSettings,
    register: bool,
    scratch: Path,
) -> tuple[str | None, str | None, Path]:
    """Register the bundle in MLflow, or keep it as the last unregistered one; return run, version and folder."""
    if not register:
        target = platform.home.resolve() / "models" / settings.model_name / "unregistered"
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(candidate.bundle.path, target)
        return None, None, target
    plots: dict[str, Path] = {}
    metrics = _metrics(candidate)
    if test is not None:
        more, plots = _pictures(candidate, test, scratch)
        metrics |= more
    if candidate.trials:
        plots["search"] = scratch / "search.json"
        plots["search"].write_text(json.dumps(candidate.trials, indent=1) + "\n", encoding="utf-8")
    registry = Registry.open(platform.home)
    run_id, version = registry.log(
        candidate.bundle,
        experiment=settings.experiment,
        name=settings.model_name,
        parameters=_parameters(candidate, known, periods, settings),
        metrics=metrics,
        history=candidate.curves,
        plots=plots,
    )
    log.info("registered %s version %s", settings.model_name, version)
    return run_id, version, registry.download(settings.model_name, version)


def _pictures(candidate: Candidate, test: Dataset, scratch: Path) -> tuple[dict[str, float], dict[str, Path]]:
    """Figures of the test period beyond the bundle's own, and pictures."""
    bundle = candidate.bundle
    score = bundle.score(test.tuples)
    lost = importance(bundle, test)
    metrics = {f"importance_{name.replace(':', '_')}": value for name, value in lost.items()}
    if candidate.scenarios is not None:
        figures = scenario_figures(test, score, candidate.scenarios, threshold=bundle.info.threshold)
        metrics |= {f"test_{name}": value for name, value in figures.items()}
    seen = None if candidate.hidden is None else candidate.hidden(test.tuples)
    return metrics, write_plots(scratch, test, score, title="Test period", importance=lost, hidden=seen)


def _parameters(
    candidate: Candidate, known: Dataset, periods: Periods, settings: TrainingSettings
) -> dict[str, object]:
    info = candidate.bundle.info
    windows = {name: from_ms(value).isoformat() for name, value in periods.to_json().items()}
    counted = {"train_rows": len(known), "train_frauds": int(known.is_fraud.sum()), "left_out": known.left_out}
    features = {
        "feature_hash": info.feature_hash,
        "account_features": len(info.inputs.account),
        "transaction_features": len(info.inputs.transaction_names),
        "neighbour_features": len(info.inputs.neighbour_names),
    }
    return {**settings.model_dump(mode="json"), **windows, **counted, **features, "device": candidate.device}


def _metrics(candidate: Candidate) -> dict[str, float]:
    info = candidate.bundle.info
    return {
        **{f"test_{name}": value for name, value in info.metrics.items()},
        "best_epoch": float(candidate.best_epoch),
        "best_validation_average_precision": candidate.validation_average_precision,
        "threshold": info.threshold,
    }
