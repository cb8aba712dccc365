"""Scores the newest matured payments with challenger and champion, side by side."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from graph_features.clock import DAY_MS, MAX_EVENT_MS
from graph_features.errors import ModelError
from graph_features.settings import PlatformSettings, TrainingSettings
from training.bundle import Bundle
from training.dataset import Dataset
from training.evaluate import evaluate
from training.gates import Comparison, Figures
from training.history import History, open_history
from training.metrics import average_precision
from training.progress import Progress, no_progress

LATENCY_ROWS = 1_000
LATENCY_RUNS = 5
RESAMPLES = 200

Float32 = npt.NDArray[np.float32]


def compare_models(
    platform: PlatformSettings,
    *,
    challenger: tuple[str, Bundle],
    champion: tuple[str, Bundle] | None,
    window_days: float,
    settings: TrainingSettings,
    progress: Progress = no_progress,
) -> Comparison | None:
    """Measure (version, bundle) of both on the newest `window_days` of matured payments; None when there are none.

    Payments that either was trained on are left out: on those a model looks better than it is.
    """
    bundles = [challenger[1], *([] if champion is None else [champion[1]])]
    with open_history(platform, settings) as history:
        start_ms, end_ms = _window(history, window_days, settings, bundles)
        if start_ms >= end_ms:
            return None
        windows = [_read(history, bundles[0], start_ms, end_ms, progress)]
        if champion is not None:
            same = champion[1].info.inputs == challenger[1].info.inputs
            windows.append(windows[0] if same else _read(history, champion[1], start_ms, end_ms, progress))
    if len(windows[0]) == 0:
        return None
    return measure(challenger, champion, windows[0], windows[-1])


def measure(
    challenger: tuple[str, Bundle], champion: tuple[str, Bundle] | None, window: Dataset, champions_window: Dataset
) -> Comparison:
    """Compare on one window of payments, given as either model's inputs."""
    bundles = [(challenger[1], window)] + ([] if champion is None else [(champion[1], champions_window)])
    latency = _latencies_ms(bundles)
    scores = [bundle.score(dataset.tuples) for bundle, dataset in bundles]
    found = Comparison(
        payments=len(window),
        frauds=int(window.is_fraud.sum()),
        challenger=_figures(challenger, window, scores[0], latency[0]),
    )
    if champion is None:
        return found
    return Comparison(
        payments=found.payments,
        frauds=found.frauds,
        challenger=found.challenger,
        champion=_figures(champion, champions_window, scores[1], latency[1]),
        score_shift=float(np.mean(np.abs(scores[0] - scores[1]))),
        gain_interval=gain_interval(window, scores[0], scores[1]),
    )


def gain_interval(window: Dataset, new: Float32, old: Float32) -> tuple[float, float] | None:
    """5th and 95th percentile of AP(new) - AP(old) over resamples of senders, None without fraud.

    Frauds on one sender come together, so senders are drawn and not payments.
    """
    if not window.is_fraud.any():
        return None
    generator = np.random.default_rng(0)
    senders, code = np.unique(window.sender_id, return_inverse=True)
    gains = []
    for _ in range(RESAMPLES):
        times = np.bincount(generator.integers(0, len(senders), len(senders)), minlength=len(senders))
        rows = np.repeat(np.arange(len(window)), times[code])
        fraud = window.is_fraud[rows]
        if fraud.any():
            gains.append(average_precision(fraud, new[rows]) - average_precision(fraud, old[rows]))
    low, high = np.percentile(gains, [5, 95])
    return float(low), float(high)


def _window(history: History, window_days: float, settings: TrainingSettings, bundles: list[Bundle]) -> tuple[int, int]:
    """The newest payments old enough for their labels to be known, and not trained on."""
    known = history.records.event_range_ms()
    if known is None:
        raise ModelError("there are no transactions to compare models on: ingest some first")
    end_ms = known[1] + 1 - settings.label_maturity_s * 1_000
    trained_to = max(bundle.info.window.get("train_to", 0) for bundle in bundles)
    return max(int(end_ms - window_days * DAY_MS), trained_to), end_ms


def _read(history: History, bundle: Bundle, start_ms: int, end_ms: int, progress: Progress) -> Dataset:
    return history.read(
        bundle.info.inputs,
        start_ms=start_ms,
        end_ms=end_ms,
        label_cut_ms=MAX_EVENT_MS,
        name="promotion window",
        progress=progress,
    )


def _figures(model: tuple[str, Bundle], window: Dataset, score: Float32, latency_ms: float) -> Figures:
    version, bundle = model
    result = evaluate(window, score, threshold=bundle.info.threshold)
    return Figures(
        version=version,
        average_precision=result.average_precision,
        card_precision=result.card_precision,
        calibration_error=result.calibration_error,
        latency_ms_per_1000=latency_ms,
    )


def _latencies_ms(models: list[tuple[Bundle, Dataset]]) -> list[float]:
    """Per model, the fastest of a few runs over up to LATENCY_ROWS payments, scaled to 1,000; models take turns.

    The fastest run is the one least disturbed by whatever else the machine does.
    """
    samples = [dataset.tuples.take(np.arange(min(LATENCY_ROWS, len(dataset)))) for _, dataset in models]
    best = [float("inf")] * len(models)
    for _ in range(LATENCY_RUNS):
        for at, (bundle, _) in enumerate(models):
            started = time.perf_counter()
            bundle.score(samples[at])
            best[at] = min(best[at], time.perf_counter() - started)
    return [seconds * 1e6 / len(sample) for seconds, sample in zip(best, samples, strict=True)]
