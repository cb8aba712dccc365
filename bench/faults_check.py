"""Decision records of a run: complete, as they were answered, and each score again from the rows that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import psycopg
import pyarrow as pa

from bench.faults_load import TOLERANCE, Answer
from bench.serving_writes import Accepted
from graph_features.clock import created_timestamp, from_ms
from graph_features.embeddings import of_encoder
from graph_features.input_spec import InputSpec
from graph_features.schema import Cadence, EntityKey, ViewSchema
from graph_features.settings import PostgresSettings
from graph_features.stores.blocks import RowBlock
from graph_features.transaction import TransactionColumns
from graph_features.tuples import TupleBlocks, build_tuples
from graph_features.window_spec import WINDOWS_VIEW
from serving.assemble import ROLES
from serving.scorer import _as_unknown
from training.bundle import Bundle

Record = Mapping[str, Any]
Version = tuple[EntityKey, int, int]
"""Key, as_of in milliseconds, ingest sequence."""

RECORDS_AT_ONCE = 1_000
UNKNOWN = frozenset({"missing", "future"})
"""Reasons for which an event view's row is null to the model, where its absence alone would mean that nothing was."""


@dataclass(kw_only=True)
class Decisions:
    """The records of a run: what differs in nothing that a score depends on is kept once.

    `of_request` has (transaction_id, score, place in `distinct`) of each record by request, `counts` how many records
    each distinct one stands for.
    """

    distinct: list[dict[str, Any]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    of_request: dict[str, list[tuple[str, float, int]]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.counts)


def last_decision(postgres: PostgresSettings) -> int:
    """The number of the newest record."""
    with _connect(postgres) as connection:
        found = connection.execute("SELECT coalesce(max(id), 0) FROM ringfence.decisions").fetchone()
    assert found is not None
    return int(found[0])


def read_decisions(postgres: PostgresSettings, *, after_id: int) -> Decisions:
    """Every record with a higher number."""
    query = (
        "SELECT request_id, transaction_id, fraud_score, event_timestamp_ms, model_version, inputs::text, rows::text, "
        "degraded::text FROM ringfence.decisions WHERE id > %s ORDER BY id"
    )
    made, places = Decisions(), dict[tuple[Any, ...], int]()
    with _connect(postgres) as connection, connection.cursor("decisions") as cursor:
        cursor.itersize = 5_000
        for request_id, one, *same in cursor.execute(query, [after_id]):
            place = places.setdefault(tuple(same), len(places))
            if place == len(made.distinct):
                made.distinct.append(_record(*same))
                made.counts.append(0)
            made.counts[place] += 1
            made.of_request.setdefault(request_id, []).append((one, same[0], place))
    return made


def _record(score: float, event_ms: int, version: str, inputs: str, rows: str, degraded: str) -> dict[str, Any]:
    decode = msgspec.json.decode
    return {
        "fraud_score": score,
        "event_timestamp_ms": event_ms,
        "model_version": version,
        "inputs": decode(inputs),
        "rows": decode(rows),
        "degraded": decode(degraded),
    }


def unrecorded(answers: Sequence[Answer], decisions: Decisions) -> int:
    """Answers of 200 whose records are not there, each once, with the scores that were answered."""
    return sum(
        [(one, score) for one, score, _ in decisions.of_request.get(answer.request_id, [])] != list(answer.scores)
        for answer in answers
        if answer.status == 200
    )


def behind(answers: Sequence[Answer], decisions: Decisions, accepted: Sequence[Accepted]) -> tuple[int, int]:
    """Scores said to lack nothing whose rows lack a payment accepted before they were asked for; and all looked at."""
    by_account: dict[str, list[Accepted]] = {}
    for one in accepted:
        for account in (one.sender_id, one.receiver_id):
            by_account.setdefault(account, []).append(one)
    behind = looked = 0
    for answer in answers:
        for _, _, place in decisions.of_request.get(answer.request_id, []):
            record = decisions.distinct[place]
            for role, name in (("sender", "sender_id"), ("receiver", "receiver_id")):
                known = [one.event_ms for one in by_account.get(record["inputs"][name], []) if one.at < answer.sent]
                if known and not record["degraded"]:
                    version = record["rows"][role][WINDOWS_VIEW]
                    looked += 1
                    behind += version is None or version[0] <= max(known)
    return behind, looked


def differing(postgres: PostgresSettings, bundle: Bundle, decisions: Decisions) -> int:
    """Records whose score is not the one computed again from the rows that they name."""
    differ = 0
    with _connect(postgres) as connection:
        for start in range(0, len(decisions.distinct), RECORDS_AT_ONCE):
            part = decisions.distinct[start : start + RECORDS_AT_ONCE]
            again = recomputed(connection, bundle, part)
            wrong = np.abs(again - np.array([record["fraud_score"] for record in part])) > TOLERANCE
            differ += int(np.array(decisions.counts[start : start + RECORDS_AT_ONCE])[wrong].sum())
    return differ


def recomputed(
    connection: psycopg.Connection[Any], bundle: Bundle, records: Sequence[Record]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scores of these records' payments, float32 [B], from nothing but the records and the offline store."""
    spec: InputSpec = bundle.info.inputs
    inputs = [record["inputs"] for record in records]
    columns = {name: [given.get(name) for given in inputs] for name in ("sender_id", "receiver_id", "channel")}
    places = {
        name: np.array([np.nan if given.get(name) is None else given[name] for given in inputs], np.float64)
        for name in ("sender_lat", "sender_lon", "receiver_lat", "receiver_lon")
    }
    payments = TransactionColumns.from_mapping(
        {
            **columns,
            **places,
            "event_timestamp": np.array([record["event_timestamp_ms"] for record in records], np.int64),
            "amount_base": np.array([given["amount_base"] for given in inputs], np.int64),
        }
    )
    blocks = {view.name: _block(connection, spec, view, records) for view in (*spec.account_views, *spec.pair_views)}
    tuples = TupleBlocks(
        accounts={view.name: blocks[view.name] for view in spec.account_views},
        pairs={view.name: blocks[view.name] for view in spec.pair_views},
    )
    return bundle.score(build_tuples(spec, payments, tuples))


def _block(
    connection: psycopg.Connection[Any], spec: InputSpec, view: ViewSchema, records: Sequence[Record]
) -> RowBlock:
    """The 2B rows that the records name: those of the first role, then those of the second."""
    versions: list[Version | None] = []
    unknown = []
    for role in ROLES[view.entity]:
        for record in records:
            found = record["rows"][role][view.name]
            versions.append(None if found is None else (_key(role, record["inputs"]), found[0], found[1]))
            lacking = {(one["role"], one["view"]) for one in record["degraded"] if one["reason"] in UNKNOWN}
            unknown.append((role, view.name) in lacking)
    distinct = list(dict.fromkeys(version for version in versions if version is not None))
    # Behind the rows stands one that is absent, for those who have none.
    rows = [*_rows(connection, view, distinct), {}]
    place = {version: at for at, version in enumerate(distinct)}
    names = ["event_timestamp", "created_timestamp", *view.names]
    schema = pa.schema([view.arrow_schema.field(name).with_nullable(True) for name in names])
    block = of_encoder(RowBlock.from_arrow(view, pa.Table.from_pylist(rows, schema)), spec.encoder)
    block = block.take(np.array([len(distinct) if one is None else place[one] for one in versions]))
    null = np.flatnonzero(np.array(unknown) & ~block.present)
    return _as_unknown(block, null) if view.cadence is Cadence.EVENT and len(null) else block


def _key(role: str, inputs: Record) -> EntityKey:
    sender, receiver = inputs["sender_id"], inputs["receiver_id"]
    keys = {"sender": (sender,), "receiver": (receiver,), "pair": (sender, receiver), "reverse": (receiver, sender)}
    return keys[role]


def _rows(
    connection: psycopg.Connection[Any], view: ViewSchema, versions: Sequence[Version]
) -> Iterator[dict[str, Any]]:
    """The rows of these versions, in their order; raise LookupError naming the first that is not there.

    A row that was computed for a payment and stored nowhere is there under another sequence number.
    """
    names = ["event_timestamp", "created_timestamp", *view.names]
    columns = ", ".join(f'v."{name}"' for name in names)
    keys = "".join(f', "{name}"' for name in view.keys)
    given = ", ".join("%s::text[]" for _ in view.keys)
    same = " AND ".join(f'v."{name}" = k."{name}"' for name in view.keys)
    query = (
        f"SELECT k.at, {columns} FROM unnest(%s::int[], {given}, %s::timestamptz[], %s::timestamptz[]) "
        f'AS k(at{keys}, moment, created) CROSS JOIN LATERAL (SELECT * FROM features."{view.name}" v '
        f"WHERE {same} AND v.event_timestamp = k.moment "
        "ORDER BY v.created_timestamp = k.created DESC, v.created_timestamp DESC LIMIT 1) v ORDER BY k.at"
    )
    parameters = [
        list(range(len(versions))),
        *([key[at] for key, _, _ in versions] for at in range(len(view.keys))),
        [from_ms(as_of_ms) for _, as_of_ms, _ in versions],
        [created_timestamp(seq) for _, _, seq in versions],
    ]
    wanted = iter(enumerate(versions))
    for at, *row in connection.execute(query.encode(), parameters):
        expected, version = next(wanted)
        if at != expected:
            raise _absent(view, version)
        yield dict(zip(names, row, strict=True))
    for _, version in wanted:
        raise _absent(view, version)


def _absent(view: ViewSchema, version: Version) -> LookupError:
    key, as_of_ms, seq = version
    return LookupError(f"{view.name} of {key} as of {from_ms(as_of_ms)}, sequence {seq}: not in the offline store")


def _connect(postgres: PostgresSettings) -> psycopg.Connection[Any]:
    options: Any = postgres.conninfo()
    connection: psycopg.Connection[Any] = psycopg.connect(**options)
    return connection
