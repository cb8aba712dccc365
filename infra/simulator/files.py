"""The files of a simulation, written as it goes and named only when all of it is there."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from graph_features.contracts import FRAUD_PARTIES, LABEL_SCHEMA, STATUS_SCHEMA, STATUSES, TIMESTAMP, TRANSACTION_SCHEMA
from infra.simulator.outcomes import Outcomes
from infra.simulator.payments import GENUINE, SCENARIOS, Payments
from infra.simulator.places import CHANNELS, COUNTRIES, CURRENCIES
from infra.simulator.population import Int, Population

AMOUNT: Final = pa.decimal128(18, 2)
_SCHEMAS: Final = {
    "transactions": pa.schema(
        [
            pa.field(one.name, AMOUNT if one.name == "amount" else one.type, nullable=one.nullable)
            for one in TRANSACTION_SCHEMA
            if one.name != "amount_base"
        ]
    ),
    "statuses": STATUS_SCHEMA,
    "labels": LABEL_SCHEMA,
    "truth": pa.schema(
        [
            pa.field("transaction_id", pa.string(), nullable=False),
            pa.field("scenario", pa.string(), nullable=False),
            pa.field("ring_id", pa.string()),
        ]
    ),
}

README: Final = """\
A simulated payment history, written by `ringfence simulate`. Nothing in it is about real people.

transactions.parquet  payments in order of time; amounts in whole units of `currency`, with two decimals
statuses.parquet      payments that failed, were confirmed or were reversed; all others went through
labels.parquet        fraud or genuine, as it became known (about a week later; some are corrected)
truth.parquet         every fraudulent payment with its scenario, and its ring where it belongs to one

The columns have the names that `ringfence ingest` expects, so no mapping is needed. Amounts are in {currencies}:
with EUR as base currency, RINGFENCE_RATES='{{"USD": "0.917", "GBP": "1.163"}}' gives the rates that were used here.
The truth is for judging results; it is never an input.

{facts}
"""


class SimulationFiles:
    """Writes payments and outcomes to a folder. Leaving the block without an error names the files; else they go."""

    def __init__(self, folder: Path, people: Population) -> None:
        self._folder = folder
        self._people = people
        self._written = 0
        self._account_ids = pa.array(people.accounts.ids)
        self._places = {
            "country": _known(pa.array([COUNTRIES[code] for code in people.accounts.country]), people),
            "lat": _known(pa.array(people.accounts.lat), people),
            "lon": _known(pa.array(people.accounts.lon), people),
        }
        self._open = ExitStack()
        self._writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> SimulationFiles:
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, schema in _SCHEMAS.items():
            writer = pq.ParquetWriter(self._draft(f"{name}.parquet"), schema, compression="zstd")
            self._writers[name] = self._open.enter_context(writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        for name in (*(f"{name}.parquet" for name in _SCHEMAS), "README.txt"):
            draft = self._draft(name)
            if kind is None:
                draft.replace(self._folder / name)
            else:
                draft.unlink(missing_ok=True)

    def write(self, payments: Payments, statuses: Outcomes, labels: Outcomes) -> None:
        """Append payments, which must be in order of time and later than all before, and what became of them."""
        ids = _numbered("t", np.arange(self._written, self._written + len(payments)), 10)
        self._written += len(payments)
        self._append("transactions", self._transactions(ids, payments))
        status = pa.array(STATUSES).take(pa.array(statuses.value))
        self._append("statuses", [ids.take(pa.array(statuses.row)), status, _times(statuses.ts_ms)])
        party = pa.array(FRAUD_PARTIES).take(pa.array(labels.party))
        is_fraud = pa.array(labels.value == 1)
        self._append("labels", [ids.take(pa.array(labels.row)), is_fraud, _times(labels.ts_ms), party])
        planted = np.flatnonzero(payments.scenario != GENUINE)
        self._append(
            "truth",
            [
                ids.take(pa.array(planted)),
                pa.array(SCENARIOS).take(pa.array(payments.scenario[planted])),
                _numbered("r", payments.ring[planted], 6),
            ],
        )

    def write_readme(self, facts: str) -> None:
        text = README.format(currencies=", ".join(CURRENCIES), facts=facts)
        self._draft("README.txt").write_text(text, encoding="utf-8")

    def _transactions(self, ids: pa.Array, payments: Payments) -> list[pa.Array]:
        sender, receiver = pa.array(payments.sender), pa.array(payments.receiver)
        places = self._places
        return [
            ids,
            _times(payments.ts_ms),
            self._account_ids.take(sender),
            self._account_ids.take(receiver),
            _major(payments.amount),
            pa.array(CURRENCIES).take(pa.array(payments.currency)),
            pa.array(CHANNELS).take(pa.array(payments.channel)),
            _numbered("d", payments.device, 7),
            _numbered("k", payments.card, 7),
            _addresses(payments.ip),
            places["country"].take(sender),
            places["country"].take(receiver),
            places["lat"].take(sender),
            places["lon"].take(sender),
            places["lat"].take(receiver),
            places["lon"].take(receiver),
        ]

    def _append(self, name: str, columns: list[pa.Array]) -> None:
        if len(columns[0]):
            self._writers[name].write_table(pa.Table.from_arrays(columns, schema=_SCHEMAS[name]))

    def _draft(self, name: str) -> Path:
        return self._folder / f"{name}.part"


def _known(values: pa.Array, people: Population) -> pa.Array:
    return pc.if_else(pa.array(people.accounts.placeless), pa.scalar(None, values.type), values)


def _times(ts_ms: Int) -> pa.Array:
    return pa.array(ts_ms).cast(TIMESTAMP)


def _major(minor: Int) -> pa.Array:
    """Amounts (0 or more) as exact decimals: a decimal128 is a little-endian integer of two 64-bit halves."""
    halves = np.zeros((len(minor), 2), np.int64)
    halves[:, 0] = minor
    return pa.Array.from_buffers(AMOUNT, len(minor), [None, pa.py_buffer(halves)])


def _numbered(letter: str, numbers: Int, width: int) -> pa.Array:
    """Names such as d0000017; null where the number is negative."""
    padded = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")
    names = pc.binary_join_element_wise(pa.scalar(letter), padded, pa.scalar(""))
    return pc.if_else(pa.array(numbers < 0), pa.scalar(None, pa.string()), names)


def _addresses(numbers: Int) -> pa.Array:
    """Addresses in 10.0.0.0/8, which belong to nobody; null where the number is negative."""
    parts = [pa.array((numbers >> shift) & 255).cast(pa.string()) for shift in (16, 8, 0)]
    names = pc.binary_join_element_wise(pa.scalar("10"), *parts, pa.scalar("."))
    return pc.if_else(pa.array(numbers < 0), pa.scalar(None, pa.string()), names)
