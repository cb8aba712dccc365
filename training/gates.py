"""What a challenger has to hold: gates from a file, figures of both models, and the reasons when a gate is shut."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field

from graph_features.errors import InvalidInputError
from graph_features.jobs.parameters import parse


class Gates(BaseModel):
    """What a challenger must hold on the newest `window_days` of matured labels.

    Drops, growth, ratio and shift are against the champion on the same payments; they are skipped where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    window_days: float = Field(default=7.0, gt=0, description="Length of the window.")
    least_frauds: int = Field(default=20, ge=0, description="The window has so many known frauds.")
    least_average_precision: float = Field(default=0.0, ge=0, le=1, description="AP is at least this.")
    largest_average_precision_drop: float = Field(
        default=0.01, ge=0, le=1, description="AP is not further below the champion's."
    )
    largest_card_precision_drop: float = Field(
        default=0.02, ge=0, le=1, description="CP@100 is not further below the champion's."
    )
    largest_calibration_error: float = Field(
        default=0.05, ge=0, le=1, description="Expected calibration error is at most this."
    )
    largest_calibration_error_growth: float = Field(
        default=0.02, ge=0, le=1, description="Calibration error is not further above the champion's."
    )
    largest_latency_ms_per_1000: float = Field(
        default=200.0, ge=0, description="The ONNX graph takes at most so long for 1,000 payments."
    )
    largest_latency_ratio: float = Field(
        default=3.0, ge=0, description="It takes at most so many times as long as the champion's."
    )
    largest_score_shift: float = Field(
        default=0.25, ge=0, le=1, description="Scores differ from the champion's by at most this on average."
    )

    @classmethod
    def load(cls, path: Path | None) -> Gates:
        """Read gates from a YAML file, the defaults for what it leaves out; raise InvalidInputError naming the gate."""
        if path is None:
            return cls()
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidInputError(field="gates", expected="a readable YAML file", got=f"{path}: {error}") from None
        if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
            raise InvalidInputError(field="gates", expected="a mapping of gate to number", got=data)
        return parse(cls, data, where="gates.")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One model on the promotion window."""

    version: str
    average_precision: float
    card_precision: float
    calibration_error: float
    latency_ms_per_1000: float

    def to_json(self) -> dict[str, Any]:
        """Figures by name; what is not defined is None, since JSON knows no NaN."""
        found = asdict(self)
        return {name: None if isinstance(value, float) and not np.isfinite(value) else value
                for name, value in found.items()}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A challenger's figures on `payments` with `frauds` known, and the champion's on the same ones, if there is one.

    `score_shift` is the mean absolute difference of their scores. `gain_interval` holds the 5th and 95th percentile of
    what the challenger gains in AP, over resamples of the window's senders.
    """

    payments: int
    frauds: int
    challenger: Figures
    champion: Figures | None = None
    score_shift: float | None = None
    gain_interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        figures = [self.challenger, *([] if self.champion is None else [self.champion])]
        return {
            "payments": self.payments,
            "frauds": self.frauds,
            "models": [one.to_json() for one in figures],
            "score_shift": self.score_shift,
            "average_precision_gain": self.gain_interval,
        }


def failures(found: Comparison, gates: Gates) -> list[str]:
    """Why the challenger does not pass, gate by gate; empty when it does. What is no number does not hold its gate."""
    checks = _absolute(found, gates)
    if found.champion is not None:
        checks += _relative(found, found.champion, gates)
    return [reason for holds, reason in checks if not holds]


def _absolute(found: Comparison, gates: Gates) -> list[tuple[bool, str]]:
    new, frauds = found.challenger, found.frauds
    return [
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


def _relative(found: Comparison, old: Figures, gates: Gates) -> list[tuple[bool, str]]:
    new, shift = found.challenger, found.score_shift
    assert shift is not None
    has = f"version {old.version} has"
    return [
        (
            new.average_precision >= old.average_precision - gates.largest_average_precision_drop,
            f"average precision {new.average_precision:.4f}, {has} {old.average_precision:.4f}: "
            f"a drop of at most {gates.largest_average_precision_drop} is allowed",
        ),
        (
            new.card_precision >= old.card_precision - gates.largest_card_precision_drop,
            f"CP@100 {new.card_precision:.4f}, {has} {old.card_precision:.4f}: "
            f"a drop of at most {gates.largest_card_precision_drop} is allowed",
        ),
        (
            new.calibration_error <= old.calibration_error + gates.largest_calibration_error_growth,
            f"calibration error {new.calibration_error:.4f}, {has} {old.calibration_error:.4f}: "
            f"at most {gates.largest_calibration_error_growth} more is allowed",
        ),
        (
            new.latency_ms_per_1000 <= old.latency_ms_per_1000 * gates.largest_latency_ratio,
            f"{new.latency_ms_per_1000:.1f} ms per 1,000 payments, {has} {old.latency_ms_per_1000:.1f}: "
            f"at most {gates.largest_latency_ratio} times as long is allowed",
        ),
        (
            shift <= gates.largest_score_shift,
            f"scores move by {shift:.4f} on average, at most {gates.largest_score_shift} allowed",
        ),
    ]
