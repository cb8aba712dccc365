"""The text for COPY holds what the records of a batch hold."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_features.clock import from_ms
from graph_features.contracts import TRANSACTION_SCHEMA
from serving.decision_batch import ABSENT, DecisionBatch, stream_of
from serving.decision_copy import COLUMNS, copy_text

VIEWS = {"act%d": ("sender", "receiver"), 'od"d\\': ("sender", "receiver"), "pair": ("pair", "reverse")}
JSON = {"inputs", "rows", "unseen", "degraded"}
NUMBERS = {"scored_at_ms": int, "event_timestamp_ms": int, "fraud_score": float, "threshold": float}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
ODD = TEXT | st.sampled_from(["\\N", "\\.", "a\tb", 'quo"te', "new\nline", "100%", "%d", "\u2028"])
ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}


@st.composite
def batches(draw: st.DrawFn) -> DecisionBatch:
    """Decisions with odd ids, gaps in the payments, missing rows, unseen and degraded ones."""
    n = draw(st.integers(1, 6))
    rows = [
        {
            "transaction_id": draw(ODD), "event_timestamp": from_ms(draw(st.integers(0, 2**41))),
            "sender_id": draw(ODD), "receiver_id": draw(ODD), "amount": draw(st.integers(0, 10**15)), "currency": "EUR",
            "amount_base": draw(st.integers(0, 10**15)), "channel": draw(st.none() | ODD),
            "device_id": draw(st.none() | ODD), "sender_lat": draw(st.none() | st.floats(-90, 90)),
        }
        for _ in range(n)
    ]  # fmt: skip
    moments = st.sampled_from([ABSENT, 1, 1_700_000_000_001])
    as_of_ms = np.array(draw(st.lists(moments, min_size=6 * n, max_size=6 * n)), np.int64)
    degraded = {"role": "sender", "view": draw(ODD), "reason": "stale", "cause": None}
    return DecisionBatch(
        request_ids=[draw(ODD) for _ in rows],
        scored_at_ms=draw(st.integers(0, 2**41)), model_name=draw(ODD), model_version="1",
        model_alias="champion", feature_hash="h", threshold=draw(st.floats(0, 1)),
        payments=stream_of(pa.Table.from_pylist(rows, TRANSACTION_SCHEMA)),
        score=np.array(draw(st.lists(st.floats(0, 1, width=32), min_size=n, max_size=n)), np.float32).tobytes(),
        views=list(VIEWS), roles=list(VIEWS.values()), as_of_ms=as_of_ms.tobytes(),
        sequence=np.arange(6 * n).tobytes(), unseen=draw(st.just({}) | st.just({0: ["sender"]})),
        degraded=draw(st.just({}) | st.just({n - 1: [degraded]})),
    )  # fmt: skip


def unescaped(cell: str) -> str:
    """A cell as PostgreSQL reads it in COPY's text format."""
    out, at = [], 0
    while at < len(cell):
        out.append(ESCAPES[cell[at + 1]] if cell[at] == "\\" else cell[at])
        at += 2 if cell[at] == "\\" else 1
    return "".join(out)


def read_back(text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.removesuffix("\n").split("\n"):
        cells = dict(zip(COLUMNS, map(unescaped, line.split("\t")), strict=True))
        json = {name: msgspec.json.decode(cells[name]) for name in JSON}
        found.append({**cells, **json, **{name: kind(cells[name]) for name, kind in NUMBERS.items()}})
    return found


def plain(batch: DecisionBatch) -> list[dict[str, Any]]:
    return [msgspec.json.decode(msgspec.json.encode(record)) for record in batch.rows()]


@settings(max_examples=100, deadline=None)
@given(batches())
def test_text_of_a_batch_holds_its_records(batch: DecisionBatch) -> None:
    """Read as PostgreSQL reads it, the text gives the records that SQLite is given, to the last character."""
    assert read_back(copy_text(batch)) == plain(batch)
