"""Puts a model into service, or takes it back: gates, the alias, and a trail of who did what and why.

Serving follows the alias `champion`. Moving it in MLflow's own UI works too; only the trail is then missing.
"""

from __future__ import annotations

import getpass
import json
import logging
import time
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from graph_features.clock import DAY_MS, MAX_EVENT_MS, from_ms
from graph_features.errors import InvalidInputError, ModelError
from graph_features.settings import PlatformSettings, TrainingSettings, load
from graph_features.sources.base import RecordStore
from training.bundle import Bundle
from training.dataset import Dataset
from training.evaluate import evaluate
from training.history import current_spec, open_history
from training.progress import Progress, no_progress
from training.registry import CHAMPION, Registry

log = logging.getLogger(__name__)

PREVIOUS = "ringfence.previous_champion"
LATENCY_ROWS = 1_000
LATENCY_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What a challenger must hold on the newest `window_days` of matured labels.

    The drops are against the champion on the same payments and are skipped where there is none to compare with.
    `largest_score_shift` is the mean absolute difference of the two models' scores.
    """

    window_days: float = 7.0
    least_frauds: int = 20
    least_average_precision: float = 0.0
    largest_average_precision_drop: float = 0.01
    largest_card_precision_drop: float = 0.02
    largest_calibration_error: float = 0.05
    largest_latency_ms_per_1000: float = 200.0
    largest_score_shift: float = 0.25

    @classmethod
    def load(cls, path: Path | None) -> Gates:
        """Read gates from a YAML file, the defaults for what it leaves out; raise InvalidInputError."""
        if path is None:
            return cls()
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise InvalidInputError(field="gates", expected="a readable YAML file", got=f"{path}: {error}") from None
        known = {item.name for item in fields(cls)}
        if not isinstance(data, dict):
            raise InvalidInputError(field="gates", expected="a mapping of gate to number", got=data)
        for name, value in data.items():
            if name not in known:
                raise InvalidInputError(field=f"gates.{name}", expected=f"one of {', '.join(sorted(known))}", got=name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or value < 0:
                raise InvalidInputError(field=f"gates.{name}", expected="a number, 0 or more", got=value)
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One model on the promotion window."""

    version: str
    average_precision: float
    card_precision: float
    calibration_error: float
    latency_ms_per_1000: float


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A decision: `promoted` or not, and why (gates that failed, or what was done). `previous` was champion before."""

    name: str
    version: str
    previous: str | None
    promoted: bool
    reasons: tuple[str, ...]
    figures: tuple[Figures, ...] = ()
    score_shift: float | None = None


def promote_model(
    platform: PlatformSettings,
    *,
    version: str | None = None,
    gates: Path | None = None,
    rollback: bool = False,
    force: bool = False,
    who: str | None = None,
    alias: str = CHAMPION,
    settings: TrainingSettings | None = None,
    progress: Progress = no_progress,
) -> Promotion:
    """Compare a version (the newest by default) with the champion and move the alias to it when every gate holds.

    With `force` nothing is compared; the trail says so. With `rollback` the alias goes back to the version that was
    champion before, without comparison. The decision, its figures, who and when become tags of the version. Raises
    ModelError when there is nothing to promote or to go back to.
    """
    settings = settings or load(TrainingSettings)
    registry = Registry.open(platform.home)
    name, who = settings.model_name, who or _user()
    current = registry.version_of(name, alias)
    if rollback:
        return _roll_back(registry, name, alias, current, who)
    candidate = version or _newest(registry, name)
    if candidate == current:
        done = f"version {candidate} is {alias} already"
        return Promotion(name=name, version=candidate, previous=current, promoted=True, reasons=(done,))
    if force:
        reason = ("promoted by force, without a comparison",)
        promotion = Promotion(name=name, version=candidate, previous=current, promoted=True, reasons=reason)
    else:
        promotion = _compare(platform, registry, name, candidate, current, Gates.load(gates), settings, progress)
    if promotion.promoted:
        registry.set_alias(name, alias, candidate)
    registry.tag(name, candidate, _audit(promotion, who, "promoted" if promotion.promoted else "refused"))
    log.info("version %s of %s: %s", candidate, name, "; ".join(promotion.reasons))
    return promotion


def _newest(registry: Registry, name: str) -> str:
    versions = registry.versions(name)
    if not versions:
        raise ModelError(f"no version of {name!r} to promote: train one (`ringfence train`)")
    return str(versions[0].version)


def _roll_back(registry: Registry, name: str, alias: str, current: str | None, who: str) -> Promotion:
    if current is None:
        raise ModelError(f"{name!r} has no {alias}, so there is nothing to roll back")
    previous = registry.tags(name, current).get(PREVIOUS)
    if not previous:
        raise ModelError(f"version {current} of {name!r} was the first {alias}: there is none to roll back to")
    registry.set_alias(name, alias, previous)
    done = f"rolled back from version {current} to {previous}"
    promotion = Promotion(name=name, version=previous, previous=current, promoted=True, reasons=(done,))
    # PREVIOUS stays as it was on both: a second rollback goes one further back, not forth again.
    trail = {key: value for key, value in _audit(promotion, who, "rolled back").items() if key != PREVIOUS}
    registry.tag(name, current, trail)
    return promotion


def _compare(
    platform: PlatformSettings,
    registry: Registry,
    name: str,
    candidate: str,
    current: str | None,
    gates: Gates,
    settings: TrainingSettings,
    progress: Progress,
) -> Promotion:
    spec = current_spec(settings)
    challenger = Bundle.load(registry.download(name, candidate))
    if challenger.info.feature_hash != spec.feature_hash:
        wrong = (
            f"feature hash {challenger.info.feature_hash}, the catalogue's is {spec.feature_hash}: train a new model"
        )
        return Promotion(name=name, version=candidate, previous=current, promoted=False, reasons=(wrong,))
    champion, note = _champion(registry, name, current, challenger)
    with open_history(platform, settings) as history:
        start_ms, end_ms = _matured_window(history.records, gates, settings)
        window = history.read(
            challenger.info.inputs,
            start_ms=start_ms,
            end_ms=end_ms,
            label_cut_ms=MAX_EVENT_MS,
            name="promotion window",
            progress=progress,
        )
    return judge(name, candidate, current, challenger, champion, window, gates, note)


def judge(
    name: str,
    candidate: str,
    current: str | None,
    challenger: Bundle,
    champion: Bundle | None,
    window: Dataset,
    gates: Gates,
    note: str | None = None,
) -> Promotion:
    """Score the window with both models and hold the challenger against the gates. Moves nothing."""
    new, new_score = _measure(candidate, challenger, window)
    reasons = _absolute(new, window, gates)
    figures, shift = [new], None
    if champion is not None and current is not None:
        old, old_score = _measure(current, champion, window)
        figures.append(old)
        shift = float(np.mean(np.abs(new_score - old_score)))
        reasons += _relative(new, old, shift, gates)
    promoted = not reasons
    if promoted:
        first, last = from_ms(int(window.event_ms[0])), from_ms(int(window.event_ms[-1]))
        reasons = [f"every gate holds on {len(window)} payments from {first:%Y-%m-%d} to {last:%Y-%m-%d}"]
    return Promotion(
        name=name,
        version=candidate,
        previous=current,
        promoted=promoted,
        reasons=(*reasons, *([note] if note else [])),
        figures=tuple(figures),
        score_shift=shift,
    )


def _champion(
    registry: Registry, name: str, current: str | None, challenger: Bundle
) -> tuple[Bundle | None, str | None]:
    """The champion, if the challenger's inputs can be fed to it, and a note if they cannot."""
    if current is None:
        return None, None
    champion = Bundle.load(registry.download(name, current))
    if champion.info.feature_hash == challenger.info.feature_hash and champion.info.inputs == challenger.info.inputs:
        return champion, None
    return None, f"version {current} reads other inputs and was not compared"


def _matured_window(records: RecordStore, gates: Gates, settings: TrainingSettings) -> tuple[int, int]:
    """The newest payments old enough for their labels to be known."""
    known = records.event_range_ms()
    if known is None:
        raise ModelError("there are no transactions to compare models on: ingest some first")
    end_ms = known[1] + 1 - settings.label_maturity_s * 1_000
    return int(end_ms - gates.window_days * DAY_MS), end_ms


def _measure(version: str, bundle: Bundle, window: Dataset) -> tuple[Figures, npt.NDArray[np.float32]]:
    score = bundle.score(window.tuples)
    result = evaluate(window, score, threshold=bundle.info.threshold)
    figures = Figures(
        version=version,
        average_precision=result.average_precision,
        card_precision=result.card_precision,
        calibration_error=result.calibration_error,
        latency_ms_per_1000=_latency_ms(bundle, window),
    )
    return figures, score


def _latency_ms(bundle: Bundle, window: Dataset) -> float:
    """Fastest of a few runs over up to LATENCY_ROWS payments, scaled to 1,000: the one least disturbed by others."""
    tuples = window.tuples.take(np.arange(min(LATENCY_ROWS, len(window))))
    times = []
    for _ in range(LATENCY_RUNS):
        started = time.perf_counter()
        bundle.score(tuples)
        times.append(time.perf_counter() - started)
    return min(times) * 1_000 * (1_000 / len(tuples))


def _absolute(new: Figures, window: Dataset, gates: Gates) -> list[str]:
    frauds = int(window.is_fraud.sum())
    checks = [
        (frauds >= gates.least_frauds, f"{frauds} known frauds in the window, at least {gates.least_frauds} wanted"),
        (
            new.average_precision >= gates.least_average_precision,
            f"average precision {new.average_precision:.4f}, at least {gates.least_average_precision} wanted",
        ),
        (
            new.calibration_error <= gates.largest_calibration_error,
            f"calibration error {new.calibration_error:.4f}, at most {gates.largest_calibration_error} allowed",
        ),
        (
            new.latency_ms_per_1000 <= gates.largest_latency_ms_per_1000,
            f"{new.latency_ms_per_1000:.1f} ms per 1,000 payments, at most {gates.largest_latency_ms_per_1000} allowed",
        ),
    ]
    # Written so that a figure that is not a number fails its gate.
    return [reason for holds, reason in checks if not holds]


def _relative(new: Figures, old: Figures, shift: float, gates: Gates) -> list[str]:
    checks = [
        (
            new.average_precision >= old.average_precision - gates.largest_average_precision_drop,
            f"average precision {new.average_precision:.4f}, version {old.version} has {old.average_precision:.4f}",
        ),
        (
            new.card_precision >= old.card_precision - gates.largest_card_precision_drop,
            f"CP@100 {new.card_precision:.4f}, version {old.version} has {old.card_precision:.4f}",
        ),
        (
            shift <= gates.largest_score_shift,
            f"scores move by {shift:.4f} on average, at most {gates.largest_score_shift} allowed",
        ),
    ]
    return [reason for holds, reason in checks if not holds]


def _audit(promotion: Promotion, who: str, decision: str) -> dict[str, str]:
    trail = {
        "ringfence.decision": decision,
        "ringfence.decided_by": who,
        "ringfence.decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "ringfence.reasons": "; ".join(promotion.reasons),
        "ringfence.figures": json.dumps([asdict(figures) for figures in promotion.figures]),
    }
    if promotion.promoted and promotion.previous is not None:
        trail[PREVIOUS] = promotion.previous
    return trail


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
