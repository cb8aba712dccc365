"""Registers a candidate in MLflow with everything that a run should say, or keeps it as a folder."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from graph_features.clock import from_ms
from graph_features.settings import PlatformSettings, TrainingSettings
from training.candidate import Candidate
from training.dataset import Dataset
from training.importance import importance
from training.periods import Periods
from training.plots import write_plots
from training.registry import Registry
from training.scenarios import scenario_figures

log = logging.getLogger(__name__)


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
