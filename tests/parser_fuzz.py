"""Bodies that no client should send, for the parsers: each must be read or refused as bad input, and nothing else.

Bytes without meaning, documents with bytes changed, cut and repeated, and documents with a value replaced.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from graph_features.errors import InvalidInputError
from graph_features.ingest.requests import transaction_table
from graph_features.settings import IngestSettings
from serving.api import (
    JobRequest,
    LabelsRequest,
    PredictRequest,
    StatusesRequest,
    Transaction,
    TransactionsRequest,
)
from serving.api_feast import OnlineFeaturesRequest, PushRequest
from serving.api_v2 import InferRequest
from serving.parse import check_batch, decode
from serving.payments import Payments
from serving.quick import QuickTable
from serving.tensors import read_request

INGEST = IngestSettings(rates={"USD": "0.92", "JPY": "0.0061"}, hash_key="key")
PAYMENTS, QUICK = Payments(INGEST, future_skew_ms=0), QuickTable(INGEST)
NOW_MS = 1_800_000_000_000

PAYMENT: dict[str, Any] = {
    "transaction_id": "t1",
    "event_timestamp": "2026-03-01T12:00:00.123Z",
    "sender_id": "a",
    "receiver_id": "b",
    "amount": 129.9,
    "currency": "EUR",
    "channel": "online",
    "device_id": "d",
    "sender_country": "DE",
    "sender_lat": 1.5,
    "sender_lon": -3,
}
_STATUS = {"transaction_id": "t1", "status": "completed", "status_timestamp": "2026-03-01T12:00:05Z"}
_LABEL = {"transaction_id": "t1", "is_fraud": True, "label_timestamp": "2026-03-08T09:00:00Z", "fraud_party": "both"}
_TENSORS = [
    {"name": name, "datatype": "FP64" if name == "amount" else "BYTES", "shape": [1], "data": [PAYMENT[name]]}
    for name in ("transaction_id", "event_timestamp", "sender_id", "receiver_id", "amount", "currency")
]
DOCUMENTS: dict[type, dict[str, Any]] = {
    PredictRequest: {
        "transactions": [PAYMENT, {**PAYMENT, "transaction_id": "t2", "amount": "12.50"}],
        "explain": True,
    },
    TransactionsRequest: {"transactions": [PAYMENT]},
    StatusesRequest: {"statuses": [_STATUS]},
    LabelsRequest: {"labels": [_LABEL]},
    OnlineFeaturesRequest: {"entities": {"account_id": ["a", "b"]}, "features": ["account_activity:sent_count"]},
    PushRequest: {"push_source_name": "p", "df": {"account_id": ["a"], "event_timestamp": ["2026-03-01T12:00:00Z"]}},
    JobRequest: {"kind": "materialize", "parameters": {"workers": 1}},
    InferRequest: {"inputs": _TENSORS, "id": "x", "parameters": {"binary_data_output": False}},
}

_TOKENS = (
    b'NaN Infinity -Infinity 1e999 -0 1E+2 0.001 null true [] {} "" "\\ud800" "\\u0000" \xff \xef\xbb\xbf , : [[[[ '
    b'9223372036854775808 1e-400 "2026-02-30T00:00:00Z" "2026-03-01T24:00:00Z" "1,5" 00 .5'
).split()
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        ["EUR", "USD", "", "x" * 129, "2026-03-01T12:00:00Z", "1E+2", "0.001", "DE", "de", "a\x00b", "١٢"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a document, the document itself aside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((*path, key), *_places(inner, (*path, key)))]


@st.composite
def replaced(draw: Callable[[Any], Any], kind: type) -> bytes:
    """A document with one to three values replaced, taken away or doubled under a name that nobody knows."""
    document = copy.deepcopy(DOCUMENTS[kind])
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document)
        if not places:
            break
        *path, last = draw(st.sampled_from(places))
        inner = document
        for step in path:
            inner = inner[step]
        what = draw(st.sampled_from(["replace", "replace", "remove", "rename"]))
        if what == "replace":
            inner[last] = draw(values)
        elif what == "remove" or not isinstance(inner, dict):
            del inner[last]
        else:
            inner[draw(st.text(max_size=4))] = inner[last]
    return json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def garbled(draw: Callable[[Any], Any], kind: type) -> bytes:
    """A document whose bytes were changed, cut out, repeated, or interrupted by what JSON does not have."""
    body = json.dumps(DOCUMENTS[kind]).encode()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        end = draw(st.integers(at, min(len(body), at + 12)))
        piece = draw(st.binary(max_size=3) | st.sampled_from(_TOKENS) | st.just(body[at:end] * 2))
        body = body[:at] + piece + body[end:]
    return body


kinds = st.sampled_from(list(DOCUMENTS))
bodies = kinds.flatmap(
    lambda kind: st.tuples(st.just(kind), st.one_of(replaced(kind), garbled(kind), st.binary(max_size=60)))
)


def check(kind: type, body: bytes) -> bool:
    """Read `body` as this kind of request, as far as that goes without stores; return whether it was accepted.

    Raises whatever is not a refusal of bad input, and AssertionError where the two ways to a table differ.
    """
    try:
        request: Any = decode(body, kind)
        if kind in (PredictRequest, TransactionsRequest):
            check_batch("transactions", request.transactions, 10)
            alike(request.transactions)
            PAYMENTS.transactions(request.transactions, now_ms=NOW_MS)
        elif kind is StatusesRequest:
            PAYMENTS.statuses(request.statuses, now_ms=NOW_MS)
        elif kind is LabelsRequest:
            PAYMENTS.labels(request.labels, now_ms=NOW_MS)
        elif kind is InferRequest:
            alike(read_request(body, None, limit=10).payments)
    except InvalidInputError as error:
        refusal = error
    else:
        return True
    # What is refused goes back as JSON: it must be text that can be written.
    told = {"detail": str(refusal), "field": refusal.field, "got": refusal.got, "expected": refusal.expected}
    assert msgspec.json.encode(told)
    return False


def alike(rows: list[Transaction]) -> None:
    """What the quick way takes, the validator takes, and makes the same table of it."""
    table = QUICK.of(rows)
    if table is not None:
        assert table.equals(transaction_table([msgspec.structs.asdict(row) for row in rows], INGEST))


def fuzz(seconds: float, first_seed: int) -> int:
    """Check new bodies for that long; return how many there were. Raises at the first that breaks a parser."""
    checked, end, number = 0, time.monotonic() + seconds, first_seed
    while time.monotonic() < end:

        @seed(number)
        @settings(max_examples=500, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(bodies)
        def run(given_: tuple[type, bytes]) -> None:
            nonlocal checked
            checked += 1
            check(*given_)

        run()
        number += 1
    return checked


def refused_originals() -> list[type]:
    """Kinds whose document, which the others are made from, is refused: nothing behind its decoder would be tested."""
    return [kind for kind, document in DOCUMENTS.items() if not check(kind, json.dumps(document).encode())]
