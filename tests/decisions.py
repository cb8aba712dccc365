"""Decisions as the server makes them, from few values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from graph_features.clock import from_ms
from graph_features.contracts import TRANSACTION_SCHEMA
from serving.decision_batch import ABSENT, DecisionBatch, stream_of

Version = tuple[int, int]
"""Of a row that was used: as_of in ms, ingest sequence."""

VIEW = "account_activity"


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A payment and the rows of VIEW, its sender's and its receiver's, that it was scored from."""

    transaction_id: str
    sender: str = "a"
    receiver: str = "b"
    device: str | None = None
    amount: int = 1250
    used: tuple[Version | None, Version | None] = ((1, 2), None)


def decided(
    *payments: str | Decided, request_id: str = "r", scored_at_ms: int = 1_000, event_ms: int = 500, score: float = 0.25
) -> DecisionBatch:
    """What the champion, whose threshold is a half, made of these payments, or of ordinary ones with these ids."""
    each = [Decided(transaction_id=one) if isinstance(one, str) else one for one in payments]
    table = pa.Table.from_pylist([_payment(one, event_ms) for one in each], TRANSACTION_SCHEMA)
    used = [one.used[half] or (ABSENT, 0) for half in (0, 1) for one in each]
    versions = np.array(used, np.int64).reshape(-1, 2)
    return DecisionBatch(
        request_ids=[request_id] * len(each),
        scored_at_ms=scored_at_ms,
        model_name="ringfence",
        model_version="1",
        model_alias="champion",
        feature_hash="h",
        threshold=0.5,
        payments=stream_of(table),
        score=np.full(len(each), score, np.float32).tobytes(),
        views=[VIEW],
        roles=[("sender", "receiver")],
        as_of_ms=versions[:, 0].tobytes(),
        sequence=versions[:, 1].tobytes(),
        unseen={},
        degraded={},
    )


def _payment(one: Decided, event_ms: int) -> dict[str, object]:
    return {
        **dict.fromkeys(TRANSACTION_SCHEMA.names),
        "transaction_id": one.transaction_id,
        "event_timestamp": from_ms(event_ms),
        "sender_id": one.sender,
        "receiver_id": one.receiver,
        "device_id": one.device,
        "amount": one.amount,
        "amount_base": one.amount,
        "currency": "EUR",
    }
