"""Scores that mean what they say: a probability out of a logit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

STEPS = 100
SHORTEST_STEP = 1e-10


def platt(logit: Float64, is_fraud: Bools) -> tuple[float, float]:
    """Scale and shift that make sigmoid(scale * logit + shift) a calibrated probability.

    Newton's method with backtracking on the log likelihood, with Platt's smoothed targets, so that few frauds do not
    end in certainty. The scale is positive: calibration must not turn the ranking round. Without both classes it
    returns (1, 0).
    Source: Platt 1999; Lin, Lin and Weng 2007, "A note on Platt's probabilistic outputs".
    """
    positives = float(is_fraud.sum())
    negatives = len(is_fraud) - positives
    if positives == 0 or negatives == 0:
        return 1.0, 0.0
    target = np.where(is_fraud, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # Fitted on standardised logits, where the curvature is well conditioned whatever the network's own scale.
    mean, spread = float(logit.mean()), max(float(logit.std()), 1e-6)
    parameters = _newton(np.stack([(logit - mean) / spread, np.ones_like(logit)]), target)
    scale = float(parameters[0]) / spread
    if scale < 1e-3:
        # The model ranks at random or worse: say the base rate, and keep what order there is.
        prior = positives / (positives + negatives)
        return 1e-3, float(np.log(prior / (1 - prior))) - 1e-3 * mean
    return scale, float(parameters[1]) - scale * mean


def carry_over(scale: float, shift: float, old: Float64, new: Float64) -> tuple[float, float]:
    """Return the calibration for a network trained again, from that of the one before it.

    `old` and `new` are both networks' logits of the same rows, genuine ones: the new network has seen them, so nothing
    can be fitted on it, but its logits can be brought to the place and the spread of the old one's.
    """
    stretch = max(float(old.std()), 1e-6) / max(float(new.std()), 1e-6)
    return scale * stretch, shift + scale * (float(old.mean()) - stretch * float(new.mean()))


def sigmoid(x: Float64) -> Float64:
    """1 / (1 + exp(-x)), without overflow."""
    out: Float64 = 1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0)))
    return out


def _newton(features: Float64, target: Float64) -> Float64:
    prior = float(np.clip(target.mean(), 1e-9, 1 - 1e-9))
    parameters = np.array([0.0, np.log(prior / (1 - prior))])
    loss = _loss(parameters, features, target)
    for _ in range(STEPS):
        probability = sigmoid(parameters @ features)
        gradient = features @ (probability - target)
        hessian = (features * (probability * (1 - probability))) @ features.T + 1e-9 * np.eye(2)
        direction = np.linalg.solve(hessian, gradient)
        length = 1.0
        while length > SHORTEST_STEP:
            trial = parameters - length * direction
            trial_loss = _loss(trial, features, target)
            if trial_loss < loss - 1e-4 * length * float(gradient @ direction):
                break
            length /= 2
        else:
            break
        parameters, loss = trial, trial_loss
    return parameters


def _loss(parameters: Float64, features: Float64, target: Float64) -> float:
    z = parameters @ features
    return float(np.sum(np.logaddexp(0.0, z) - target * z))
