"""From a finished sheet to scores for the reply and to decision records."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from msgspec import UNSET

from graph_features.clock import CREATED_EPOCH, to_ms
from graph_features.schema import Cadence
from serving.api import Degraded, Score
from serving.models import LoadedModel
from serving.online import instant
from serving.predict import Row, Sheet
from serving.scorer import ABSENT_MS, State

Role = Literal["sender", "receiver", "pair", "reverse"]
ROLES: dict[str, tuple[Role, Role]] = {"account": ("sender", "receiver"), "pair": ("pair", "reverse")}
"""By entity, what its first B rows and its last B rows are to a payment."""

_REASONS: dict[int, Literal["missing", "stale", "future", "too_old"]] = {
    State.MISSING: "missing",
    State.STALE: "stale",
    State.FUTURE: "future",
    State.TOO_OLD: "too_old",
}
_CREATED_EPOCH_US = to_ms(CREATED_EPOCH) * 1_000


def scores_of(sheet: Sheet, transaction_ids: list[str], model: LoadedModel) -> list[Score]:
    """One Score per payment, in order."""
    threshold = model.info.threshold
    as_of = _newest(sheet)
    degraded = _degraded(sheet)
    values = sheet.score.astype(np.float64).tolist()
    return [
        Score(
            transaction_id=transaction_id,
            fraud_score=value,
            threshold=threshold,
            decision="flag" if value >= threshold else "pass",
            features_as_of={role: as_of[role][at] for role in as_of},
            unseen=[role for role, row in (("sender", at), ("receiver", at + len(sheet))) if row in sheet.unseen],
            degraded=degraded.get(at, []),
            explanation=sheet.explanation.get(at, UNSET),
        )
        for at, (transaction_id, value) in enumerate(zip(transaction_ids, values, strict=True))
    ]


def _newest(sheet: Sheet) -> dict[str, list[str | None]]:
    """Per role the newest as_of among its event rows, null where there is none."""
    out: dict[str, list[str | None]] = {}
    for entity, roles in ROLES.items():
        views = sheet.event_views(entity)
        if not views:
            continue
        newest = sheet.as_of_ms[views].max(axis=0)
        for role, part in zip(roles, np.split(newest, 2), strict=True):
            out[role] = [None if ms == ABSENT_MS else instant(ms) for ms in part.tolist()]
    return out


def _degraded(sheet: Sheet) -> dict[int, list[Degraded]]:
    """By payment what its score had to do without. Never-seen accounts and their pairs have nothing to be missed."""
    out: dict[int, list[Degraded]] = {}
    for at, row in zip(*(found.tolist() for found in np.nonzero(sheet.state)), strict=True):
        view = sheet.views[at]
        if view.cadence is Cadence.SLICE and row in sheet.unseen:
            continue
        event = view.cadence is Cadence.EVENT
        item = Degraded(
            role=ROLES[view.entity][row >= len(sheet)],
            view=view.name,
            reason=_REASONS[int(sheet.state[at, row])],
            cause=sheet.causes.get(sheet.key(view.entity, row), "unavailable") if event else None,
        )
        out.setdefault(row % len(sheet), []).append(item)
    return out


def decision_rows(
    sheet: Sheet, table: pa.Table, scores: list[Score], model: LoadedModel, *, request_id: str, scored_at_ms: int
) -> list[dict[str, Any]]:
    """One record per payment for the decision log: enough to compute the score again from the offline store."""
    events = sheet.transactions.event_ms.tolist()
    inputs = table.drop_columns(["event_timestamp"]).to_pylist()
    return [
        {
            "transaction_id": score.transaction_id,
            "request_id": request_id,
            "scored_at_ms": scored_at_ms,
            "event_timestamp_ms": event_ms,
            "model_name": model.ref.name,
            "model_version": model.ref.version,
            "model_alias": model.ref.alias,
            "feature_hash": model.info.feature_hash,
            "fraud_score": score.fraud_score,
            "threshold": score.threshold,
            "decision": score.decision,
            "inputs": {name: value for name, value in given.items() if value is not None},
            "rows": _rows_used(sheet, at),
            "unseen": score.unseen,
            "degraded": [
                {"role": item.role, "view": item.view, "reason": item.reason, "cause": item.cause}
                for item in score.degraded
            ],
        }
        for at, (score, event_ms, given) in enumerate(zip(scores, events, inputs, strict=True))
    ]


def _rows_used(sheet: Sheet, payment: int) -> dict[str, dict[str, list[int] | None]]:
    """Per role and view [as_of in ms, ingest sequence] of the row that was used, null where there was none."""
    out: dict[str, dict[str, list[int] | None]] = {}
    for at, view in enumerate(sheet.views):
        for role, row in zip(ROLES[view.entity], (payment, payment + len(sheet)), strict=True):
            out.setdefault(role, {})[view.name] = _version(sheet, at, row)
    return out


def _version(sheet: Sheet, at: int, row: Row) -> list[int] | None:
    as_of_ms = int(sheet.as_of_ms[at, row])
    return None if as_of_ms == ABSENT_MS else [as_of_ms, int(sheet.created_us[at, row]) - _CREATED_EPOCH_US]
