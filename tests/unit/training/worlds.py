"""A small world of card payments with planted fraud, and the same world with everything from an instant on shuffled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.catalog import catalog
from graph_features.clock import DAY_MS
from graph_features.contracts import STORED_LABEL_SCHEMA, STORED_TRANSACTION_SCHEMA
from graph_features.edges import EdgeTable
from graph_features.input_spec import InputSpec
from graph_features.neighbour_spec import NEIGHBOUR_PROFILE
from graph_features.settings import FeatureSettings
from graph_features.transaction import TransactionColumns
from training.dataset import Dataset, labelled
from training.point_in_time import tuples_at

START_MS = 1_650_000_000_000 // DAY_MS * DAY_MS
LABEL_DELAY_MS = 3 * DAY_MS
SETTINGS = FeatureSettings()

Int64 = npt.NDArray[np.int64]


def spec(neighbours: int = 4) -> InputSpec:
    return InputSpec.derive(
        catalog().event_views(),
        feature_hash=catalog().feature_hash(settings=SETTINGS),
        profile=NEIGHBOUR_PROFILE,
        neighbours=neighbours,
    )


@dataclass(frozen=True, kw_only=True)
class World:
    """Payments in order of time; labels are known LABEL_DELAY_MS later."""

    ts_ms: Int64
    sender: Int64
    receiver: Int64
    amount: Int64
    fraud: npt.NDArray[np.bool_]

    @classmethod
    def make(cls, *, payments: int = 2_400, days: int = 16, seed: int = 0) -> World:
        """40 customers and 20 shops; three shops are bad for some days, and large amounts are fraud."""
        draw = np.random.default_rng(seed)
        ts_ms = np.sort(draw.integers(0, days * DAY_MS, payments)) + START_MS
        sender, receiver = draw.integers(0, 40, payments), draw.integers(0, 20, payments)
        amount = np.exp(draw.normal(8, 0.4, payments) + sender / 40).astype(np.int64)
        day = (ts_ms - START_MS) / DAY_MS
        bad = (receiver < 3) & (day > 2 + 3 * receiver) & (day < 9 + 3 * receiver)
        large = draw.random(payments) < 0.02
        return cls(
            ts_ms=ts_ms, sender=sender, receiver=receiver, amount=np.where(large, 6 * amount, amount), fraud=bad | large
        )

    def shuffled_from(self, from_ms: int, seed: int = 1) -> World:
        """The same before `from_ms`; from then on payments have each other's parties, amounts and labels.

        Labels of earlier payments that become known from then on are shuffled among each other too.
        """
        draw = np.random.default_rng(seed)
        changed: dict[str, Any] = {}
        later = np.flatnonzero(self.ts_ms >= from_ms)
        unknown = np.flatnonzero((self.ts_ms < from_ms) & (self.ts_ms + LABEL_DELAY_MS >= from_ms))
        for name in ("sender", "receiver", "amount", "fraud"):
            changed[name] = getattr(self, name).copy()
            changed[name][later] = draw.permutation(changed[name][later])
        changed["fraud"][unknown] = draw.permutation(changed["fraud"][unknown])
        return replace(self, **changed)

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """Stored transactions and labels."""
        ids = [f"p{number:05d}" for number in range(len(self.ts_ms))]
        seq = np.arange(1, len(ids) + 1)
        known: dict[str, Any] = {
            "seq": seq,
            "transaction_id": ids,
            "event_timestamp": self.ts_ms,
            "sender_id": [f"c{code}" for code in self.sender],
            "receiver_id": [f"t{code}" for code in self.receiver],
            "amount": self.amount,
            "currency": ["EUR"] * len(ids),
            "amount_base": self.amount,
        }
        labels = {
            "seq": seq + len(ids),
            "transaction_id": ids,
            "is_fraud": self.fraud,
            "label_timestamp": self.ts_ms + LABEL_DELAY_MS,
            "fraud_party": ["sender"] * len(ids),
        }
        return _table(known, STORED_TRANSACTION_SCHEMA), _table(labels, STORED_LABEL_SCHEMA)

    def edges(self) -> EdgeTable:
        transactions, labels = self.tables()
        return EdgeTable.from_arrow(transactions, None, labels)

    def dataset(self, from_day: float, to_day: float, *, cut_day: float) -> Dataset:
        """Labelled tuples of a period, labels known before `cut_day`."""
        at = [START_MS + int(day * DAY_MS) for day in (from_day, to_day, cut_day)]
        transactions, labels = self.tables()
        payments = labelled(transactions, labels, start_ms=at[0], end_ms=at[1], label_cut_ms=at[2], maturity_s=0)
        columns = TransactionColumns.from_arrow(payments.transactions)
        return Dataset(
            tuples=tuples_at(spec(), self.edges(), columns, settings=SETTINGS),
            is_fraud=payments.is_fraud,
            event_ms=columns.event_ms,
            transaction_id=payments.transactions["transaction_id"].to_numpy(),
            sender_id=payments.transactions["sender_id"].to_numpy(),
        )


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    length = len(columns["seq"])
    return pa.table(
        [
            pa.array(columns[field.name]).cast(field.type) if field.name in columns else pa.nulls(length, field.type)
            for field in schema
        ],
        schema=schema,
    )
