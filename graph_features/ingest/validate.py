"""Checks rows a column at a time: one definition of what is accepted, for files and for requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.contracts import (
    FRAUD_PARTIES,
    LABEL_SCHEMA,
    MAX_AMOUNT_MINOR,
    STATUS_SCHEMA,
    STATUSES,
    TRANSACTION_SCHEMA,
)
from graph_features.ingest import values
from graph_features.ingest.columns import raw_column, time_format
from graph_features.ingest.faults import Fault, Faults
from graph_features.ingest.hashing import HASHED_FIELDS, Hasher
from graph_features.ingest.mapping import Delay, FromColumn, Source
from graph_features.ingest.money import Rates, exponent_of, minor_units
from graph_features.ingest.times import instants, later
from graph_features.settings import IngestSettings

Int64 = npt.NDArray[np.int64]

_OPTIONAL: Final = tuple(field.name for field in TRANSACTION_SCHEMA if field.nullable)


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The good rows of a chunk as tables of contracts.py, and per table the position of each row in the chunk."""

    transactions: pa.Table
    transaction_rows: Int64
    statuses: pa.Table
    status_rows: Int64
    labels: pa.Table
    label_rows: Int64
    faults: list[Fault]
    ids: pa.Array
    """transaction_id of every row of the chunk, as far as it could be read."""
    truncated: int
    """Good rows with an instant finer than a millisecond."""
    rounded: int
    """Good rows whose amount carried float residue."""


class Validator:
    """Checks chunks of one kind of file; `sources` is what ColumnMapping.resolve returned."""

    def __init__(self, kind: str, sources: Mapping[str, Source], settings: IngestSettings) -> None:
        self._kind = kind
        self._sources = sources
        self._rates = Rates.of(settings)
        self._hasher = Hasher(settings.hash_key)

    def validate(self, chunk: pa.Table, row_numbers: Int64) -> Validated:
        """Check every row of `chunk` (columns as the sources name them)."""
        faults = Faults(chunk.num_rows)
        raw = {
            target: raw_column(target, source, chunk, row_numbers, faults) for target, source in self._sources.items()
        }
        ids = values.require("transaction_id", values.word("transaction_id", raw["transaction_id"], faults), faults)
        checked: dict[str, pa.Array] = {"transaction_id": ids}
        if self._kind == "transactions":
            checked |= self._payment(raw, faults)
        has_status = self._status(raw, checked, faults)
        has_label = self._label(raw, checked, faults)
        return self._sorted_out(checked, faults, has_status, has_label)

    def _time(self, target: str, raw: Mapping[str, pa.Array], faults: Faults) -> pa.Array:
        return instants(target, raw[target], faults, time_format(self._sources[target]))

    def _payment(self, raw: Mapping[str, pa.Array], faults: Faults) -> dict[str, pa.Array]:
        columns = {
            "event_timestamp": values.require("event_timestamp", self._time("event_timestamp", raw, faults), faults)
        }
        for name in ("sender_id", "receiver_id"):
            columns[name] = values.require(name, values.word(name, raw[name], faults), faults)
        columns |= self._money(raw, faults)
        for name in _OPTIONAL:
            if name in raw:
                columns[name] = self._optional(name, raw[name], faults)
            else:
                columns[name] = pa.nulls(len(faults.good), TRANSACTION_SCHEMA.field(name).type)
        return columns

    def _optional(self, name: str, raw: pa.Array, faults: Faults) -> pa.Array:
        if name in HASHED_FIELDS:
            text = values.word(name, raw, faults, secret=self._hasher.active)
            return self._hasher.column(name, text)
        if name.endswith("_country"):
            return values.country(name, raw, faults)
        if name.endswith(("_lat", "_lon")):
            return values.coordinate(name, raw, faults, limit=90.0 if name.endswith("_lat") else 180.0)
        return values.word(name, raw, faults)

    def _money(self, raw: Mapping[str, pa.Array], faults: Faults) -> dict[str, pa.Array]:
        currencies = values.currency("currency", raw["currency"], faults, known=self._rates.currencies)
        codes = pc.fill_null(currencies, self._rates.base_currency)
        exponents = np.zeros(len(codes), np.int64)
        source = self._sources["amount"]
        if not (isinstance(source, FromColumn) and source.unit == "minor"):
            distinct = pc.unique(codes)
            decimals = np.array([exponent_of(code) for code in distinct.to_pylist()], np.int64)
            exponents = decimals[pc.index_in(codes, value_set=distinct).to_numpy()]
        values.require("amount", raw["amount"], faults)
        minor = minor_units("amount", raw["amount"], exponents, faults)
        base = np.zeros(len(codes), np.int64)
        for code in pc.unique(codes.filter(pa.array(faults.good))).to_pylist():
            rows = faults.good & values.truth(pc.equal(codes, code))
            base[rows] = self._rates.to_base(minor[rows], code)
        limit = f"at most {MAX_AMOUNT_MINOR} minor units in {self._rates.base_currency}"
        faults.add("amount", base > MAX_AMOUNT_MINOR, limit, raw["amount"])
        return {"amount": pa.array(minor), "currency": currencies, "amount_base": pa.array(base)}

    def _status(self, raw: Mapping[str, pa.Array], checked: dict[str, pa.Array], faults: Faults) -> pa.Array:
        if "status" not in raw:
            return pa.array(np.zeros(len(faults.good), np.bool_))
        status = values.choice("status", raw["status"], faults, options=STATUSES)
        if self._kind != "transactions":
            values.require("status", status, faults)
        present = pc.is_valid(status)
        checked["status"] = status
        checked["status_timestamp"] = self._known_at("status_timestamp", raw, checked, faults, present)
        return present

    def _label(self, raw: Mapping[str, pa.Array], checked: dict[str, pa.Array], faults: Faults) -> pa.Array:
        if "is_fraud" not in raw:
            return pa.array(np.zeros(len(faults.good), np.bool_))
        is_fraud = values.boolean("is_fraud", raw["is_fraud"], faults)
        if self._kind != "transactions":
            values.require("is_fraud", is_fraud, faults)
        present = pc.is_valid(is_fraud)
        party = raw.get("fraud_party", pa.nulls(len(is_fraud), pa.string()))
        party = values.choice("fraud_party", party, faults, options=FRAUD_PARTIES)
        checked["is_fraud"] = is_fraud
        checked["label_timestamp"] = self._known_at("label_timestamp", raw, checked, faults, present)
        checked["fraud_party"] = pc.fill_null(party, "both")
        return present

    def _known_at(
        self,
        target: str,
        raw: Mapping[str, pa.Array],
        checked: Mapping[str, pa.Array],
        faults: Faults,
        present: pa.Array,
    ) -> pa.Array:
        """When a status or label became known: a column, so long after the payment, or with the payment itself."""
        source = self._sources.get(target)
        if source is None:
            return checked["event_timestamp"]
        if isinstance(source, Delay):
            return later(checked["event_timestamp"], source.delay_ms, target, faults)
        moments = self._time(target, raw, faults)
        faults.add(target, values.truth(pc.and_(present, pc.is_null(moments))), "a value", moments)
        return moments

    def _sorted_out(
        self, checked: Mapping[str, pa.Array], faults: Faults, has_status: pa.Array, has_label: pa.Array
    ) -> Validated:
        payments = faults.good if self._kind == "transactions" else np.zeros(len(faults.good), np.bool_)
        transactions, transaction_rows = _table(checked, TRANSACTION_SCHEMA, payments)
        statuses, status_rows = _table(checked, STATUS_SCHEMA, faults.good & values.truth(has_status))
        labels, label_rows = _table(checked, LABEL_SCHEMA, faults.good & values.truth(has_label))
        return Validated(
            transactions=transactions,
            transaction_rows=transaction_rows,
            statuses=statuses,
            status_rows=status_rows,
            labels=labels,
            label_rows=label_rows,
            faults=faults.found,
            ids=checked["transaction_id"],
            truncated=int((faults.truncated & faults.good).sum()),
            rounded=int((faults.rounded & faults.good).sum()),
        )


def _table(checked: Mapping[str, pa.Array], schema: pa.Schema, wanted: npt.NDArray[np.bool_]) -> tuple[pa.Table, Int64]:
    rows = np.flatnonzero(wanted)
    if not len(rows):
        return schema.empty_table(), rows
    mask = pa.array(wanted)
    columns = [checked[name].filter(mask).cast(schema.field(name).type) for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema), rows
