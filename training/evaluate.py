"""How a model does on a period: figures, the book's protocol, and the curves that the plots show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from graph_features.clock import DAY_MS, MAX_EVENT_MS
from graph_features.errors import InvalidInputError, ModelError
from graph_features.sources.base import RecordStore
from training.dataset import Dataset, labelled_payments
from training.metrics import average_precision, calibration, card_precision, roc_auc

Bools = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

Protocol = Literal["all", "handbook"]
"""all: every labelled payment of the period. handbook: without senders whose fraud is known by then (see `unknown`)."""

CARDS = 100


def protocol_named(name: str) -> Protocol:
    """Return the protocol of that name; raise InvalidInputError."""
    if name in get_args(Protocol):
        return cast(Protocol, name)
    raise InvalidInputError(field="protocol", expected="all or handbook", got=name)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of scores on labelled payments. CP@k is `card_precision`, with k = CARDS; see training.metrics.

    `alert_rate` is the share of payments at or above the threshold, `alert_precision` and `alert_recall` the share of
    frauds among them and of frauds found. NaN where a figure is not defined (no fraud, say).
    """

    payments: int
    frauds: int
    roc_auc: float
    average_precision: float
    card_precision: float
    brier: float
    calibration_error: float
    mean_score: float
    alert_rate: float
    alert_precision: float
    alert_recall: float

    @classmethod
    def from_figures(cls, figures: Mapping[str, float]) -> Evaluation:
        """Rebuild from `figures`; what was not defined is NaN again."""
        counts = {"payments", "frauds"}
        values: dict[str, Any] = {item.name: figures.get(item.name, float("nan")) for item in fields(cls)}
        return cls(**{name: int(value) if name in counts else value for name, value in values.items()})

    def figures(self) -> dict[str, float]:
        """All figures by name, those that are not defined left out."""
        return {name: float(value) for name, value in asdict(self).items() if np.isfinite(value)}


def evaluate(dataset: Dataset, score: npt.NDArray[Any], *, threshold: float) -> Evaluation:
    """Measure `score` [B] on the dataset; raise ModelError without any payment."""
    if len(dataset) == 0:
        raise ModelError("nothing to evaluate on: the period holds no labelled payment")
    fraud, alert = dataset.is_fraud, score >= threshold
    measured = calibration(fraud, score)
    cards = card_precision(fraud, score, dataset.event_ms, dataset.sender_id, k=CARDS)
    return Evaluation(
        payments=len(dataset),
        frauds=int(fraud.sum()),
        roc_auc=roc_auc(fraud, score),
        average_precision=average_precision(fraud, score),
        card_precision=float(np.mean(cards)),
        brier=measured.brier,
        calibration_error=measured.expected_error,
        mean_score=float(np.mean(score)),
        alert_rate=float(alert.mean()),
        alert_precision=float(fraud[alert].mean()) if alert.any() else float("nan"),
        alert_recall=float(alert[fraud].mean()) if fraud.any() else float("nan"),
    )


def unknown(dataset: Dataset, records: RecordStore, *, train_from_ms: int, train_to_ms: int) -> Bools:
    """Mark the payments that the handbook's protocol keeps, bool [B].

    On test day d (0-based, UTC days from the dataset's first) every sender is left out that had a fraud from
    `train_from_ms` up to the end of day d - 1 after training: by then it would be known, labels being as many days
    late as lie between training and test.
    Source: Le Borgne et al., Reproducible Machine Learning for Credit Card Fraud Detection, section "Train and test
    split".
    """
    days = _days(dataset)
    if days == 0:
        return np.ones(0, bool)
    sender, event_ms = _frauds(records, train_from_ms, train_to_ms + days * DAY_MS)
    return unknown_senders(dataset, sender, event_ms, train_to_ms=train_to_ms)


def unknown_senders(
    dataset: Dataset, fraud_sender: npt.NDArray[np.object_], fraud_ms: Int64, *, train_to_ms: int
) -> Bools:
    """Do what `unknown` does, given sender and time of every fraud from the start of training on."""
    keep = np.ones(len(dataset), bool)
    if len(dataset) == 0:
        return keep
    first_day = int(dataset.event_ms[0]) // DAY_MS
    for day in range(_days(dataset)):
        compromised = set(fraud_sender[fraud_ms < train_to_ms + day * DAY_MS].tolist())
        rows = np.flatnonzero(dataset.event_ms // DAY_MS - first_day == day)
        keep[rows] = [account not in compromised for account in dataset.sender_id[rows]]
    return keep


def _days(dataset: Dataset) -> int:
    if len(dataset) == 0:
        return 0
    return int(dataset.event_ms[-1]) // DAY_MS - int(dataset.event_ms[0]) // DAY_MS + 1


def _frauds(records: RecordStore, from_ms: int, to_ms: int) -> tuple[npt.NDArray[np.object_], Int64]:
    """Sender and time of every fraud of a period, whenever its label came."""
    payments = labelled_payments(records, start_ms=from_ms, end_ms=to_ms, label_cut_ms=MAX_EVENT_MS, maturity_s=0)
    frauds = payments.transactions.filter(payments.is_fraud)
    event_ms = frauds["event_timestamp"].cast("int64").to_numpy()
    return frauds["sender_id"].to_numpy(), event_ms
