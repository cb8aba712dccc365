"""Generated payments for the feature benchmarks: the same seed gives the same bytes, at any size, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.clock import DAY_MS, HOUR_MS, SECOND_MS
from graph_features.contracts import (
    FRAUD_PARTIES,
    STORED_LABEL_SCHEMA,
    STORED_STATUS_SCHEMA,
    STORED_TRANSACTION_SCHEMA,
    TIMESTAMP,
)
from graph_features.edges import EdgeTable

START_MS = 1_735_689_600_000  # 2025-01-01
MERCHANT_SHARE = 0.05
TO_MERCHANTS = 0.7
CIRCLE = 40
IN_CIRCLE = 0.7
"""Accounts live in circles of this size; so many of the payments between people stay inside: triangles come from it."""
TAIL = 0.6
"""Rank r is chosen in proportion to r ** -TAIL: the largest merchant of 10,000 gets about 2 % of theirs."""
FAILED, REVERSED = 0.012, 0.008
LABELLED, FRAUD = 0.2, 0.02
LABEL_DELAY_MS = 7 * DAY_MS
CHANNELS = ("app", "card", "pos", "transfer", "web")
COUNTRIES = ("AT", "BE", "CH", "DE", "ES", "FR", "GB", "IT", "LT", "NL", "NG", "PL", "PT", "RO", "SE", "US")
HOME = 0.85
HOURLY = (1, 1, 1, 1, 1, 2, 4, 7, 9, 10, 10, 11, 13, 12, 10, 10, 11, 12, 13, 12, 9, 6, 4, 2)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Payments:
    """`n_payments` between `n_accounts` over `days` from 2025 on: stored tables, numbered in order of time."""

    n_accounts: int
    n_payments: int
    days: int
    seed: int

    @property
    def end_ms(self) -> int:
        """Midnight after the last payment."""
        return START_MS + self.days * DAY_MS

    @property
    def conditions(self) -> str:
        """What a figure of this data must say."""
        return f"{self.n_accounts:,} accounts, {self.n_payments:,} payments, {self.days} days, seed {self.seed}"

    @cached_property
    def transactions(self) -> pa.Table:
        """STORED_TRANSACTION_SCHEMA, oldest first."""
        n = self.n_payments
        sender, receiver = self._ends
        draw = self._stream(3)
        amount = np.clip(np.exp(draw.normal(8.0, 1.3, n)), 50, 5_000_000).astype(np.int64)
        home = self._stream(4).choice(len(COUNTRIES), self.n_accounts)
        abroad = draw.random(n) > HOME
        receiver_country = np.where(abroad, draw.integers(len(COUNTRIES), size=n), home[sender])
        columns = {
            "seq": pa.array(np.arange(1, n + 1)),
            "transaction_id": _ids("t", np.arange(n), 9),
            "event_timestamp": pa.array(self._ts_ms).cast(TIMESTAMP),
            "sender_id": _ids("a", sender, 8),
            "receiver_id": _ids("a", receiver, 8),
            "amount": pa.array(amount),
            "currency": pa.repeat(pa.scalar("EUR"), n),
            "amount_base": pa.array(amount),
            "channel": _words(CHANNELS, draw.integers(len(CHANNELS), size=n), draw.random(n) < 0.05),
            "device_id": _ids("d", sender * 2 + draw.integers(2, size=n) * (sender % 3 > 0), 8, draw.random(n) < 0.3),
            "card_id": _ids("c", sender, 8, receiver >= self.n_merchants),
            "ip": _ids("i", sender // 3 * 4 + draw.integers(4, size=n), 8, draw.random(n) < 0.4),
            "sender_country": _words(COUNTRIES, home[sender], draw.random(n) < 0.02),
            "receiver_country": _words(COUNTRIES, receiver_country, draw.random(n) < 0.02),
            **{name: pa.nulls(n, pa.float64()) for name in STORED_TRANSACTION_SCHEMA.names if name[-4:-1] in _PLACES},
        }
        return pa.table(columns).select(STORED_TRANSACTION_SCHEMA.names).cast(STORED_TRANSACTION_SCHEMA)

    @cached_property
    def statuses(self) -> pa.Table:
        """STORED_STATUS_SCHEMA: some fail within seconds, some are reversed days later."""
        draw = self._stream(5)
        chance = draw.random(self.n_payments)
        chosen = np.flatnonzero(chance < FAILED + REVERSED)
        failed = chance[chosen] < FAILED
        seconds, days = draw.integers(1, 30, len(chosen)), draw.integers(1, 10, len(chosen))
        late_ms = np.where(failed, seconds * SECOND_MS, days * DAY_MS)
        columns = {
            "transaction_id": _ids("t", chosen, 9),
            "status": _words(("failed", "reversed"), (~failed).astype(np.int64)),
        }
        return _known(columns, "status_timestamp", self._ts_ms[chosen] + late_ms, self.n_payments, STORED_STATUS_SCHEMA)

    @cached_property
    def labels(self) -> pa.Table:
        """STORED_LABEL_SCHEMA: a fifth of the payments, known seven days later."""
        draw = self._stream(6)
        chosen = np.flatnonzero(draw.random(self.n_payments) < LABELLED)
        columns = {
            "transaction_id": _ids("t", chosen, 9),
            "is_fraud": pa.array(draw.random(len(chosen)) < FRAUD),
            "fraud_party": _words(FRAUD_PARTIES, draw.integers(len(FRAUD_PARTIES), size=len(chosen))),
        }
        first = self.n_payments + self.statuses.num_rows
        return _known(columns, "label_timestamp", self._ts_ms[chosen] + LABEL_DELAY_MS, first, STORED_LABEL_SCHEMA)

    def edges(self) -> EdgeTable:
        """A new edge table of everything, without any index."""
        return EdgeTable.from_arrow(self.transactions, self.statuses, self.labels)

    @property
    def n_merchants(self) -> int:
        """The first accounts are the merchants, the largest of them first."""
        return max(1, int(self.n_accounts * MERCHANT_SHARE))

    @cached_property
    def _ts_ms(self) -> Ints:
        draw = self._stream(1)
        day = draw.integers(self.days, size=self.n_payments)
        hour = draw.choice(24, self.n_payments, p=np.array(HOURLY) / sum(HOURLY))
        within = draw.integers(HOUR_MS, size=self.n_payments)
        return np.sort(START_MS + day * DAY_MS + hour * HOUR_MS + within)

    @cached_property
    def _ends(self) -> tuple[Ints, Ints]:
        """Sender and receiver numbers; nobody pays themselves."""
        draw = self._stream(2)
        n, merchants, people = self.n_payments, self.n_merchants, self.n_accounts - self.n_merchants
        sender = merchants + _ranked(draw, people, n, TAIL / 2)
        to_merchant = draw.random(n) < TO_MERCHANTS
        circle = (sender - merchants) // CIRCLE * CIRCLE
        near = circle + draw.integers(CIRCLE, size=n)
        far = _ranked(draw, people, n, TAIL)
        person = merchants + np.where(draw.random(n) < IN_CIRCLE, near, far) % people
        person += np.where(person == sender, np.where(person + 1 < self.n_accounts, 1, -1), 0)
        return sender, np.where(to_merchant, _ranked(draw, merchants, n, TAIL), person)

    def _stream(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, number])


_PLACES = ("_la", "_lo")


def _ranked(draw: np.random.Generator, n_ranks: int, size: int, tail: float) -> Ints:
    """Draw ranks 0 to n_ranks - 1 in proportion to about (rank + 1) ** -tail, by inverting its integral."""
    return np.minimum((n_ranks * draw.random(size) ** (1.0 / (1.0 - tail))).astype(np.int64), n_ranks - 1)


def _ids(letter: str, number: Ints, width: int, null: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """`letter` and `width` digits each, built as bytes: a format call per row would take longer than the benchmark."""
    digits = number[:, None] // 10 ** np.arange(width - 1, -1, -1) % 10 + ord("0")
    text = np.empty((len(number), width + 1), np.uint8)
    text[:, 0], text[:, 1:] = ord(letter), digits
    offsets = np.arange(len(number) + 1, dtype=np.int32) * (width + 1)
    buffers: list[Any] = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
    array = pa.StringArray.from_buffers(len(number), buffers[1], buffers[2])
    return array if null is None else _without(array, null)


def _words(words: tuple[str, ...], code: Ints, null: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    array = pa.array(words).take(pa.array(code))
    return array if null is None else _without(array, null)


def _without(array: pa.Array, null: npt.NDArray[np.bool_]) -> pa.Array:
    import pyarrow.compute as pc

    return pc.if_else(pa.array(null), pa.scalar(None, array.type), array)


def _known(columns: dict[str, Any], time: str, ts_ms: Ints, after_seq: int, schema: pa.Schema) -> pa.Table:
    """Number rows in the order in which they became known, from after_seq + 1 on."""
    order = np.argsort(ts_ms, kind="stable")
    table = pa.table({**columns, time: pa.array(ts_ms).cast(TIMESTAMP)}).take(pa.array(order))
    seq = pa.array(np.arange(after_seq + 1, after_seq + 1 + len(order)))
    return table.append_column("seq", seq).select(schema.names).cast(schema)
