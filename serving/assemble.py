"""From a finished sheet to scores for the reply and to decision records."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import UNSET

from graph_features.clock import CREATED_EPOCH, to_ms
from graph_features.schema import Cadence
from serving.api import Degraded, Score
from serving.decision_batch import DecisionBatch, stream_of
from serving.models import LoadedModel
from serving.online import instant
from serving.predict import Sheet
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
FEW = 16
"""So few instants are written one by one."""

_CREATED_EPOCH_US = to_ms(CREATED_EPOCH) * 1_000


def scores_of(sheet: Sheet, transaction_ids: list[str], model: LoadedModel) -> list[Score]:
    """One Score per payment, in order."""
    threshold = model.info.threshold
    as_of = _newest(sheet)
    degraded = _degraded(sheet)
    unseen = _unseen(sheet)
    nothing: list[str] = []
    values = sheet.score.astype(np.float64).tolist()
    roles = list(as_of)
    return [
        Score(
            transaction_id=transaction_id,
            fraud_score=value,
            threshold=threshold,
            decision="flag" if value >= threshold else "pass",
            features_as_of=dict(zip(roles, instants, strict=True)),
            unseen=unseen.get(at, nothing),
            degraded=degraded.get(at, []),
            explanation=sheet.explanation.get(at, UNSET),
        )
        for at, (transaction_id, value, instants) in enumerate(
            zip(transaction_ids, values, zip(*as_of.values(), strict=True), strict=True)
        )
    ]


def _unseen(sheet: Sheet) -> dict[int, list[str]]:
    """By payment which of its accounts were never seen."""
    out: dict[int, list[str]] = {}
    for row in sorted(sheet.unseen):
        out.setdefault(row % len(sheet), []).append("receiver" if row >= len(sheet) else "sender")
    return out


def _newest(sheet: Sheet) -> dict[str, list[str | None]]:
    """Per role the newest as_of among its event rows, null where there is none."""
    out: dict[str, list[str | None]] = {}
    for entity, roles in ROLES.items():
        views = sheet.event_views(entity)
        if not views:
            continue
        newest = sheet.as_of_ms[views].max(axis=0)
        for role, part in zip(roles, np.split(newest, 2), strict=True):
            out[role] = _instants(part)
    return out


def _instants(ms: npt.NDArray[np.int64]) -> list[str | None]:
    """Epoch milliseconds as `serving.online.instant` writes them, null where there is none."""
    if len(ms) < FEW:
        return [None if one == ABSENT_MS else instant(one) for one in ms.tolist()]
    texts = np.datetime_as_string(ms.view("datetime64[ms]")).tolist()
    out: list[str | None] = [f"{text.removesuffix('.000')}Z" for text in texts]
    for row in np.flatnonzero(ms == ABSENT_MS).tolist():
        out[row] = None
    return out


def _degraded(sheet: Sheet) -> dict[int, list[Degraded]]:
    """By payment what its score had to do without. Never-seen accounts and their pairs have nothing to be missed."""
    out: dict[int, list[Degraded]] = {}
    if not sheet.state.any():
        return out
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


def decision_batch(
    sheet: Sheet,
    table: pa.Table,
    scores: list[Score],
    model: LoadedModel,
    *,
    request_ids: list[str],
    scored_at_ms: int,
    kept: list[int] | None = None,
) -> DecisionBatch:
    """The records of B payments for the decision log, or of those at the positions `kept`; `request_ids` [B]."""
    payments = np.arange(len(sheet)) if kept is None else np.array(kept, np.int64)
    rows = slice(None) if kept is None else np.concatenate([payments, payments + len(sheet)])
    as_of_ms = sheet.as_of_ms[:, rows]
    sequence = np.where(as_of_ms == ABSENT_MS, 0, sheet.created_us[:, rows] - _CREATED_EPOCH_US)
    chosen = scores if kept is None else [scores[at] for at in kept]
    return DecisionBatch(
        request_ids=request_ids if kept is None else [request_ids[at] for at in kept],
        scored_at_ms=scored_at_ms,
        model_name=model.ref.name,
        model_version=model.ref.version,
        model_alias=model.ref.alias,
        feature_hash=model.info.feature_hash,
        threshold=model.info.threshold,
        payments=stream_of(table if kept is None else table.take(payments)),
        score=sheet.score[payments].tobytes(),
        views=[view.name for view in sheet.views],
        roles=[ROLES[view.entity] for view in sheet.views],
        as_of_ms=as_of_ms.tobytes(),
        sequence=sequence.tobytes(),
        unseen={at: list(score.unseen) for at, score in enumerate(chosen) if score.unseen},
        degraded={at: [_found(item) for item in score.degraded] for at, score in enumerate(chosen) if score.degraded},
    )


def _found(item: Degraded) -> dict[str, str | None]:
    return {"role": item.role, "view": item.view, "reason": item.reason, "cause": item.cause}
