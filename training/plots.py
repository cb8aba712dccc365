"""The pictures of a training run: precision against recall, calibration, CP@k, importance, and a map of payments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.dataset import Dataset
from training.metrics import average_precision, calibration, card_precision, precision_recall

CARDS = (10, 25, 50, 100, 150, 200)
MAPPED = 4_000
"""Genuine payments on the map; all frauds are on it."""

Floats = npt.NDArray[Any]


def write_plots(
    folder: Path,
    test: Dataset,
    score: Floats,
    *,
    title: str,
    importance: Mapping[str, float] | None = None,
    hidden: Floats | None = None,
) -> dict[str, Path]:
    """Write pictures as PNG into `folder` and return their paths by name; none without fraud.

    `score` is that of each payment, `importance` the AP that each group of inputs is worth, and `hidden` [B, H] what
    the network makes of each payment before its last layer; without them their pictures are left out.
    """
    if not test.is_fraud.any():
        return {}
    figures = {
        "precision_recall": _precision_recall(test, score, title),
        "calibration": _calibration(test, score, title),
        "card_precision": _card_precision(test, score, title),
    }
    if importance:
        figures["importance"] = _importance(importance)
    if hidden is not None and len(hidden) > 2:
        figures["embedding_map"] = _map(test, hidden)
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        figure.savefig(paths[name], dpi=120)
    return paths


def _figure() -> tuple[Any, Any]:
    # The object interface: pyplot would keep global state and look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _precision_recall(test: Dataset, score: Floats, title: str) -> Any:
    figure, axes = _figure()
    is_fraud = test.is_fraud
    precision, recall, _ = precision_recall(is_fraud, score)
    axes.step(recall, precision, where="post", color="tab:blue", label=f"AP {average_precision(is_fraud, score):.3f}")
    axes.axhline(is_fraud.mean(), color="grey", linestyle=":", label=f"base rate {is_fraud.mean():.4f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.legend(loc="lower left")
    return figure


def _calibration(test: Dataset, score: Floats, title: str) -> Any:
    figure, axes = _figure()
    measured = calibration(test.is_fraud, score)
    mean = np.array([row[0] for row in measured.bins])
    share = np.array([row[1] for row in measured.bins])
    floor = 1e-5
    axes.loglog(np.maximum(mean, floor), np.maximum(share, floor), "o-", color="tab:blue", label="bins of equal count")
    axes.loglog([floor, 1], [floor, 1], color="grey", linestyle=":", label="perfect")
    axes.set(xlabel="mean score", ylabel="share of frauds", title=f"{title}: Brier {measured.brier:.4f}")
    axes.legend(loc="lower left")
    return figure


def _card_precision(test: Dataset, score: Floats, title: str) -> Any:
    figure, axes = _figure()
    daily = [card_precision(test.is_fraud, score, test.event_ms, test.sender_id, k=k) for k in CARDS]
    axes.plot(CARDS, [np.mean(days) for days in daily], "o-", color="tab:blue", label="mean of days")
    axes.fill_between(CARDS, [min(days) for days in daily], [max(days) for days in daily], alpha=0.2, label="all days")
    axes.set(xlabel="senders looked at per day (k)", ylabel="CP@k", ylim=(0, None), title=title)
    axes.legend(loc="lower left")
    return figure


def _importance(lost: Mapping[str, float]) -> Any:
    figure, axes = _figure()
    names = list(lost)[::-1]
    axes.barh(names, [lost[name] for name in names], color="tab:blue")
    axes.set(xlabel="AP lost when the group becomes ordinary")
    axes.tick_params(axis="y", labelsize=7)
    return figure


def _map(test: Dataset, hidden: Floats) -> Any:
    """The two directions in which the network's view of payments varies most."""
    figure, axes = _figure()
    genuine = np.flatnonzero(~test.is_fraud)
    if len(genuine) > MAPPED:
        genuine = np.random.default_rng(0).choice(genuine, MAPPED, replace=False)
    fraud = np.flatnonzero(test.is_fraud)
    centred = hidden - hidden.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred[np.concatenate([genuine, fraud])], full_matrices=False)
    place = centred @ directions[:2].T
    axes.scatter(*place[genuine].T, s=3, color="tab:grey", alpha=0.4, label="genuine")
    axes.scatter(*place[fraud].T, s=8, color="tab:red", alpha=0.8, label="fraud")
    share = spread[:2] ** 2 / max(float((spread**2).sum()), 1e-12)
    axes.set(xlabel=f"{share[0]:.0%} of the variance", ylabel=f"{share[1]:.0%}", title="Payments before the last layer")
    axes.legend(loc="lower left")
    return figure
