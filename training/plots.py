"""The pictures of a training run: precision against recall, and calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.metrics import average_precision, calibration, precision_recall


def write_plots(
    folder: Path, is_fraud: npt.NDArray[np.bool_], score: npt.NDArray[Any], *, title: str
) -> dict[str, Path]:
    """Write precision_recall.png and calibration.png into `folder`, return their paths by name; none without fraud."""
    if not is_fraud.any():
        return {}
    # The object interface: pyplot would keep global state and look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths: dict[str, Path] = {}
    for name, draw in (("precision_recall", _precision_recall), ("calibration", _calibration)):
        figure = Figure(figsize=(6, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.subplots(), is_fraud, score, title)
        paths[name] = folder / f"{name}.png"
        figure.savefig(paths[name], dpi=120)
    return paths


def _precision_recall(axes: Any, is_fraud: npt.NDArray[np.bool_], score: npt.NDArray[Any], title: str) -> None:
    precision, recall, _ = precision_recall(is_fraud, score)
    axes.step(recall, precision, where="post", color="tab:blue", label=f"AP {average_precision(is_fraud, score):.3f}")
    axes.axhline(is_fraud.mean(), color="grey", linestyle=":", label=f"base rate {is_fraud.mean():.4f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.legend()


def _calibration(axes: Any, is_fraud: npt.NDArray[np.bool_], score: npt.NDArray[Any], title: str) -> None:
    measured = calibration(is_fraud, score)
    mean = np.array([row[0] for row in measured.bins])
    share = np.array([row[1] for row in measured.bins])
    floor = 1e-5
    axes.loglog(np.maximum(mean, floor), np.maximum(share, floor), "o-", color="tab:blue", label="bins of equal count")
    axes.loglog([floor, 1], [floor, 1], color="grey", linestyle=":", label="perfect")
    axes.set(xlabel="mean score", ylabel="share of frauds", title=f"{title}: Brier {measured.brier:.4f}")
    axes.legend()
