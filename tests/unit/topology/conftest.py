"""Small payment histories for whole-graph features."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from graph_features.contracts import STORED_LABEL_SCHEMA, STORED_STATUS_SCHEMA, STORED_TRANSACTION_SCHEMA
from graph_features.edges import EdgeTable
from graph_features.rows import AccountRows, Column
from graph_features.settings import FeatureSettings


@dataclass(frozen=True, kw_only=True)
class History:
    """Payments (sender, receiver, ts_ms) with statuses (payment, status, ts_ms) and labels (payment, party, ts_ms).

    `columns` gives payments other values than the usual ones, `arrival` the order in which rows are handed over.
    """

    payments: Sequence[tuple[str, str, int]]
    statuses: Sequence[tuple[int, str, int]] = field(default_factory=tuple)
    labels: Sequence[tuple[int, str | None, int]] = field(default_factory=tuple)
    columns: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    arrival: Sequence[int] = field(default_factory=tuple)

    def edges(self) -> EdgeTable:
        transactions = [
            {
                **dict.fromkeys(STORED_TRANSACTION_SCHEMA.names),
                "seq": position + 1,
                "transaction_id": f"t{position}",
                "event_timestamp": ts_ms,
                "sender_id": sender,
                "receiver_id": receiver,
                "amount": 100,
                "currency": "EUR",
                "amount_base": 100,
                **(self.columns[position] if position < len(self.columns) else {}),
            }
            for position, (sender, receiver, ts_ms) in enumerate(self.payments)
        ]
        statuses = [
            {"seq": 10_000 + i, "transaction_id": f"t{payment}", "status": status, "status_timestamp": ts_ms}
            for i, (payment, status, ts_ms) in enumerate(self.statuses)
        ]
        labels = [
            {
                "seq": 20_000 + i,
                "transaction_id": f"t{payment}",
                "is_fraud": party is not None,
                "label_timestamp": ts_ms,
                "fraud_party": party or "sender",
            }
            for i, (payment, party, ts_ms) in enumerate(self.labels)
        ]
        transactions = [transactions[position] for position in self.arrival] or transactions
        return EdgeTable.from_arrow(
            pa.Table.from_pylist(transactions, STORED_TRANSACTION_SCHEMA),
            pa.Table.from_pylist(statuses, STORED_STATUS_SCHEMA),
            pa.Table.from_pylist(labels, STORED_LABEL_SCHEMA),
        )


@pytest.fixture(scope="session")
def history() -> type[History]:
    return History


def _rows(edges: EdgeTable, as_of_ms: int, accounts: Sequence[str] | None = None) -> AccountRows:
    account = np.arange(edges.n_accounts, dtype=np.int32) if accounts is None else edges.codes(list(accounts))
    return AccountRows(
        edges=edges,
        as_of_ms=np.full(len(account), as_of_ms, np.int64),
        settings=FeatureSettings(),
        account=account,
    )


@pytest.fixture(scope="session")
def rows_at() -> Callable[..., AccountRows]:
    """Rows of all accounts of an edge table (or of the named ones) at one instant."""
    return _rows


def _by_account(edges: EdgeTable, as_of_ms: int, feature: Callable[[AccountRows], Column]) -> dict[str, Any]:
    column = feature(_rows(edges, as_of_ms))
    assert isinstance(column, np.ndarray)
    values = [None if value is np.ma.masked else value.item() for value in column]
    return dict(zip(edges.account_ids, values, strict=True))


@pytest.fixture(scope="session")
def by_account() -> Callable[..., dict[str, Any]]:
    """One feature's values per account id; masked integers are None, NaN stays."""
    return _by_account


@pytest.fixture(scope="session")
def ring_stories() -> ModuleType:
    """The module ring_stories.py: stories with rings in them, and the slow answers."""
    spec = importlib.util.spec_from_file_location("ringfence_ring_stories", Path(__file__).with_name("ring_stories.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
