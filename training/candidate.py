"""A candidate: a network trained, calibrated and exported, not registered yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.clock import from_ms
from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.settings import TrainingSettings
from graph_features.tuples import InputTuples
from training.bundle import Bundle, BundleInfo
from training.calibrate import carry_over, platt, sigmoid
from training.checkpoint import Checkpoint
from training.dataset import Dataset
from training.evaluate import Evaluation, evaluate
from training.metrics import budget_threshold
from training.periods import Periods
from training.progress import Progress
from training.registry import git_revision

EXPORT_SAMPLE = 256
"""Payments on which the exported graphs are compared with the network."""


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

    train, validation = _split(known, periods)
    rows, held_out_rows = (train.tuples, train.is_fraud), (validation.tuples, validation.is_fraud)
    kept = _checkpoints(checkpoints, settings)
    fitted = fit_by_workers(rows, held_out_rows, settings, spec=spec, checkpoint=kept.get("fit"), progress=progress)
    best, epochs, device = fitted.best_epoch, fitted.epochs, fitted.device
    held_out = logits(fitted.model, validation.tuples)
    scale, shift = platt(held_out, validation.is_fraud)
    if settings.refit:
        # The last days before the model goes live are the ones most like what it will see: they must not go unused.
        everything = (known.tuples, known.is_fraud)
        fitted = fit_by_workers(
            everything, None, settings, spec=spec, epochs=best, checkpoint=kept.get("refit"), progress=progress
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
    return Candidate(
        bundle=write_bundle(scratch / "bundle", fitted.model, info, _sample(known)),
        curves={
            "loss": [epoch.loss for epoch in epochs],
            "validation_average_precision": [epoch.validation_ap for epoch in epochs],
        },
        best_epoch=best,
        validation_average_precision=epochs[best - 1].validation_ap,
        device=device,
        hidden=partial(hidden, fitted.model),
    )


def _split(known: Dataset, periods: Periods) -> tuple[Dataset, Dataset]:
    """Training and validation rows; raise ModelError without a fraud among the latter."""
    train = known.between(periods.train_from, periods.validation_from)
    validation = known.between(periods.validation_from, periods.train_to)
    if not validation.is_fraud.any():
        raise ModelError(
            f"no known fraud from {from_ms(periods.validation_from)} to {from_ms(periods.train_to)} to validate on: "
            "move validation_from, or choose a longer training period"
        )
    return train, validation


def _sample(known: Dataset) -> InputTuples:
    rows = np.linspace(0, len(known) - 1, min(EXPORT_SAMPLE, len(known))).astype(np.int64)
    return known.tuples.take(np.unique(rows))


def _checkpoints(folder: Path | None, settings: TrainingSettings) -> dict[str, Checkpoint]:
    if folder is None:
        return {}
    key = settings.model_dump_json()
    return {name: Checkpoint(path=folder / f"{name}.pt", key=key) for name in ("fit", "refit")}


def tested(candidate: Candidate, test: Dataset | None) -> tuple[Candidate, Evaluation | None]:
    """Measure on the test period and write the figures into the bundle's own description; without one, do nothing."""
    if test is None:
        return candidate, None
    bundle = candidate.bundle
    result = evaluate(test, bundle.score(test.tuples), threshold=bundle.info.threshold)
    replace(bundle.info, metrics=result.figures()).save(bundle.path)
    return replace(candidate, bundle=Bundle.load(bundle.path)), result


def _threshold(score: npt.NDArray[np.float64], validation: Dataset, settings: TrainingSettings) -> float:
    return budget_threshold(
        score.astype(np.float32),
        validation.event_ms,
        alerts_per_day=settings.alerts_per_day,
        largest_share=settings.largest_alert_share,
    )
