"""Trains a model on a period, tests it on a later one, and registers it. What `ringfence train` and a job call."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from graph_features.backends import open_records
from graph_features.clock import MAX_EVENT_MS
from graph_features.input_spec import InputSpec
from graph_features.settings import PlatformSettings, TrainingSettings, load
from training.bundle import Bundle
from training.candidate import Candidate, make_candidate, tested
from training.checkpoint import checkpoint_folder
from training.dataset import Dataset
from training.evaluate import Evaluation, Protocol, unknown
from training.history import current_spec, open_history
from training.keep import store_candidate
from training.periods import Periods
from training.progress import Progress, no_progress
from training.registry import Registry

log = logging.getLogger(__name__)

FINGERPRINT = "ringfence.fingerprint"
REPORT = "ringfence.report"
REPORTED = (
    *("train_rows", "train_frauds", "left_out", "best_epoch", "validation_average_precision", "threshold", "device"),
)
"""What the tag REPORT keeps of a TrainReport."""


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
    settings, search) is returned in place of a new one. With `search_minutes` settings are looked for first, for so
    long, on folds of the training period. `scenarios` (see training.scenarios) adds figures per scenario of the test's
    frauds.
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
    fingerprint = _fingerprint(platform, spec, periods, settings, protocol, search_minutes)
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
        candidate, result = tested(candidate, test)
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
    platform: PlatformSettings,
    spec: InputSpec,
    periods: Periods,
    settings: TrainingSettings,
    protocol: Protocol,
    search_minutes: float | None,
) -> str:
    """What decides how a model comes out: the records, the features, the periods, the settings, and a search if any."""
    records = open_records(platform)
    try:
        max_seq = records.max_seq()
    finally:
        records.close()
    parts = [max_seq, spec.to_json(), periods.to_json(), settings.model_dump(mode="json"), protocol]
    if search_minutes is not None:
        parts.append(search_minutes)
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
