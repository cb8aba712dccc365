"""Evaluates a registered model on any period. What `ringfence evaluate` calls."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graph_features.clock import MAX_EVENT_MS, to_ms
from graph_features.settings import PlatformSettings, TrainingSettings, load
from training.bundle import Bundle
from training.dataset import Dataset
from training.evaluate import Evaluation, Protocol, evaluate, unknown
from training.history import History, open_history
from training.progress import Progress, no_progress
from training.registry import CHAMPION, Registry


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """A model's figures on a period, and what they were measured on: `score` float32 [B] beside `dataset`."""

    name: str
    version: str
    protocol: Protocol
    result: Evaluation
    dataset: Dataset
    score: npt.NDArray[np.float32]
    threshold: float

    def write_scores(self, path: Path) -> None:
        """Write transaction_id, event_timestamp, sender_id, is_fraud and fraud_score to a Parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from graph_features.contracts import TIMESTAMP

        columns = {
            "transaction_id": pa.array(self.dataset.transaction_id, pa.string()),
            "event_timestamp": pa.array(self.dataset.event_ms, pa.int64()).cast(TIMESTAMP),
            "sender_id": pa.array(self.dataset.sender_id, pa.string()),
            "is_fraud": pa.array(self.dataset.is_fraud),
            "fraud_score": pa.array(self.score, pa.float32()),
        }
        pq.write_table(pa.table(columns), path)


def evaluate_model(
    platform: PlatformSettings,
    *,
    test_from: datetime,
    test_to: datetime,
    version: str | None = None,
    alias: str = CHAMPION,
    label_cut: datetime | None = None,
    protocol: Protocol = "all",
    settings: TrainingSettings | None = None,
    progress: Progress = no_progress,
) -> Assessment:
    """Score [test_from, test_to) with a version, or the one behind `alias`, through the same tuples as in serving.

    Labels are those known before `label_cut`, by now if it is not given. Raises ModelError when there is no such model
    or no labelled payment.
    """
    settings = settings or load(TrainingSettings)
    name = settings.model_name
    version, bundle = registered(platform, name, version, alias)
    with open_history(platform, settings) as history:
        dataset = evaluation_period(history, bundle, test_from, test_to, label_cut, protocol, progress)
    score = bundle.score(dataset.tuples)
    result = evaluate(dataset, score, threshold=bundle.info.threshold)
    return Assessment(
        name=name,
        version=version,
        protocol=protocol,
        result=result,
        dataset=dataset,
        score=score,
        threshold=bundle.info.threshold,
    )


def registered(platform: PlatformSettings, name: str, version: str | None, alias: str) -> tuple[str, Bundle]:
    """Return a version, the one behind `alias` where none is named, and its bundle; raise ModelError."""
    registry = Registry.open(platform.home)
    if version is None:
        version, folder = registry.resolve(name, alias)
    else:
        folder = registry.download(name, version)
    return version, Bundle.load(folder)


def evaluation_period(
    history: History,
    bundle: Bundle,
    test_from: datetime,
    test_to: datetime,
    label_cut: datetime | None,
    protocol: Protocol,
    progress: Progress,
) -> Dataset:
    """Return the payments of [test_from, test_to) that the protocol keeps for this model, labels as of the cut."""
    dataset = history.read(
        bundle.info.inputs,
        start_ms=to_ms(test_from),
        end_ms=to_ms(test_to),
        label_cut_ms=MAX_EVENT_MS if label_cut is None else to_ms(label_cut),
        name="evaluation period",
        progress=progress,
    )
    if protocol == "handbook":
        window = bundle.info.window
        keep = unknown(dataset, history.records, train_from_ms=window["train_from"], train_to_ms=window["train_to"])
        dataset = dataset.take(np.flatnonzero(keep))
    return dataset
