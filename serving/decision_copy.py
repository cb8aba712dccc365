"""Decisions as the text that PostgreSQL's COPY takes, made without a dictionary per payment on the way.

What all payments of a batch share is written once, the rows they were scored from fill in one template per pattern of
missing rows. The values are those of `DecisionBatch.rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np

from serving.decision_batch import ABSENT, DecisionBatch

_OWN = (
    "request_id",
    "transaction_id",
    "event_timestamp_ms",
    "fraud_score",
    "decision",
    "inputs",
    "rows",
    "unseen",
    "degraded",
)
_SHARED = (
    "scored_at_ms",
    "model_name",
    "model_version",
    "model_alias",
    "feature_hash",
    "threshold",
)
COLUMNS = (*_OWN, *_SHARED)
"""Columns of the table of decisions in the order of each line; `id` is given by the database."""

_ESCAPES = str.maketrans({"\\": r"\\", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"})
_json = msgspec.json.Encoder()


def copy_text(batch: DecisionBatch) -> str:
    """The records of a batch, a line each."""
    return "".join(_lines(batch))


def _cell(value: str | float) -> str:
    if not isinstance(value, str):
        return repr(value)
    return value if value.isprintable() and "\\" not in value else value.translate(_ESCAPES)


def _to_json(value: Any) -> str:
    return _doubled(_json.encode(value).decode())


def _doubled(text: str) -> str:
    """JSON as a cell: it holds no control character, and its backslashes stand for themselves."""
    return text.replace("\\", r"\\")


def _lines(batch: DecisionBatch) -> Iterator[str]:
    inputs, events_ms = batch.given()
    shared = "\t".join(_cell(getattr(batch, name)) for name in _SHARED)
    texts = _doubled(_json.encode_lines(inputs).decode()).split("\n")
    scores, rows = batch.scores(), _rows_used(batch, len(events_ms))
    for at, (request_id, given, event_ms, score, text, used) in enumerate(
        zip(batch.request_ids, inputs, events_ms, scores, texts[:-1], rows, strict=True)
    ):
        decision = "flag" if score >= batch.threshold else "pass"
        unseen = _to_json(batch.unseen[at]) if at in batch.unseen else "[]"
        degraded = _to_json(batch.degraded[at]) if at in batch.degraded else "[]"
        ids = f"{_cell(request_id)}\t{_cell(given['transaction_id'])}"
        yield f"{ids}\t{event_ms}\t{score!r}\t{decision}\t{text}\t{used}\t{unseen}\t{degraded}\t{shared}\n"


def _rows_used(batch: DecisionBatch, n: int) -> Iterator[str]:
    """Per payment the JSON of `DecisionBatch.rows`' "rows"."""
    parts = _parts(batch)
    versions = batch.versions(n).reshape(len(batch.views), 2, n, 2)
    found = np.stack([versions[view, half] for _, _, view, half in parts], axis=1)
    absent = found[:, :, 0] == ABSENT
    cells, patterns = found.reshape(n, -1).tolist(), absent.any(axis=1).tolist()

    @cache
    def template(pattern: bytes) -> tuple[str, list[int]]:
        missing = np.frombuffer(pattern, np.bool_)
        return _template(parts, missing.tolist()), np.flatnonzero(np.repeat(~missing, 2)).tolist()

    whole, _ = template(bytes(len(parts)))
    for at, (row, incomplete) in enumerate(zip(cells, patterns, strict=True)):
        if incomplete:
            text, kept = template(absent[at].tobytes())
            yield text % tuple([row[place] for place in kept])
        else:
            yield whole % tuple(row)


def _parts(batch: DecisionBatch) -> list[tuple[str, str, int, int]]:
    """Role, view, and where its rows stand: place of the view, first or last half; those of one role together."""
    every = [
        (role, view, at, half)
        for at, (view, roles) in enumerate(zip(batch.views, batch.roles, strict=True))
        for half, role in enumerate(roles)
    ]
    order = list(dict.fromkeys(role for role, *_ in every))
    return sorted(every, key=lambda part: order.index(part[0]))


def _template(parts: Sequence[tuple[str, str, int, int]], missing: Sequence[bool]) -> str:
    """The JSON with a place for each number, and null for the rows that are missing."""
    roles: dict[str, list[str]] = {}
    for (role, view, _, _), gone in zip(parts, missing, strict=True):
        roles.setdefault(role, []).append(f"{_name(view)}:{'null' if gone else '[%d,%d]'}")
    return "{" + ",".join(f"{_name(role)}:{{{','.join(views)}}}" for role, views in roles.items()) + "}"


def _name(text: str) -> str:
    return _to_json(text).replace("%", "%%")
