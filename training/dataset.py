"""Labelled input tuples of a period: the only place that reads history, through Feast's point-in-time join."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.embeddings import of_encoder
from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.schema import ViewSchema
from graph_features.sources.base import RecordStore
from graph_features.stores.blocks import RowBlock
from graph_features.tuples import InputTuples, TransactionColumns, TupleBlocks, build_tuples
from training.progress import Progress, no_progress

if TYPE_CHECKING:
    import feast

Bools = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]

MODEL_SERVICE = "fraud_model_v1"
HEAD_SERVICE = "fraud_head_v1"
"""The same with accounts' embeddings."""

REVERSE = "reverse"
ROW = "row_number"
"""Entity column that carries each payment's place through the join, which may reorder rows."""


@dataclass(frozen=True, kw_only=True)
class LabelledPayments:
    """Stored transactions, by time, with the labels known at a cut; `left_out` had none and were too young."""

    transactions: pa.Table
    is_fraud: Bools
    left_out: int

    def __len__(self) -> int:
        return len(self.is_fraud)

    def digest(self) -> str:
        """A hash over ids, times, amounts and labels."""
        digest = hashlib.sha256(self.is_fraud.tobytes())
        digest.update("\0".join(self.transactions["transaction_id"].to_pylist()).encode())
        digest.update(_ms(self.transactions["event_timestamp"]).tobytes())
        digest.update(self.transactions["amount_base"].to_numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """B labelled payments as the model sees them, in order of time.

    `left_out` counts payments of the period whose label was neither known nor assumed at the cut.
    """

    tuples: InputTuples
    is_fraud: Bools
    event_ms: Int64
    transaction_id: Objects
    sender_id: Objects
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.is_fraud)

    def take(self, rows: Int64) -> Dataset:
        """Return the payments at positions `rows`."""
        return replace(
            self,
            tuples=self.tuples.take(rows),
            is_fraud=self.is_fraud[rows],
            event_ms=self.event_ms[rows],
            transaction_id=self.transaction_id[rows],
            sender_id=self.sender_id[rows],
        )

    @classmethod
    def concat(cls, parts: Sequence[Dataset]) -> Dataset:
        """Put parts that follow each other in time together."""
        return cls(
            tuples=InputTuples.concat([part.tuples for part in parts]),
            is_fraud=np.concatenate([part.is_fraud for part in parts]),
            event_ms=np.concatenate([part.event_ms for part in parts]),
            transaction_id=np.concatenate([part.transaction_id for part in parts]),
            sender_id=np.concatenate([part.sender_id for part in parts]),
            left_out=sum(part.left_out for part in parts),
        )

    def between(self, from_ms_: int, to_ms_: int) -> Dataset:
        """Return the payments with from_ms_ <= event_ms < to_ms_."""
        first, last = np.searchsorted(self.event_ms, [from_ms_, to_ms_])
        return self.take(np.arange(first, last))


def dataset_parts(
    store: feast.FeatureStore,
    payments: LabelledPayments,
    *,
    spec: InputSpec,
    chunk_rows: int = 20_000,
    progress: Progress = no_progress,
) -> Iterator[Dataset]:
    """Yield the labelled tuples of payments, `chunk_rows` at a time and in their order: what memory has to hold.

    Features are those of each payment's own time. The first part counts all that were left out.
    """
    total = float(len(payments))
    for first in range(0, len(payments), chunk_rows):
        progress(float(first), total, "reading features")
        table = payments.transactions.slice(first, chunk_rows)
        yield Dataset(
            tuples=historical_tuples(store, spec, table),
            is_fraud=payments.is_fraud[first : first + chunk_rows],
            event_ms=_ms(table["event_timestamp"]),
            transaction_id=table["transaction_id"].to_numpy(),
            sender_id=table["sender_id"].to_numpy(),
            left_out=payments.left_out if first == 0 else 0,
        )
    progress(total, total, "reading features")


def labelled_payments(
    records: RecordStore, *, start_ms: int, end_ms: int, label_cut_ms: int, maturity_s: int
) -> LabelledPayments:
    """Return the transactions with start_ms <= event_timestamp < end_ms, by time, with their labels as of the cut.

    Labels are those known strictly before `label_cut_ms`, the latest known wins; without one, a payment at least
    `maturity_s` old at the cut is genuine and a younger one is left out.
    """
    everything = records.read_all(before_ms=max(end_ms, label_cut_ms))
    return labelled(
        everything.transactions,
        everything.labels,
        start_ms=start_ms,
        end_ms=end_ms,
        label_cut_ms=label_cut_ms,
        maturity_s=maturity_s,
    )


def labelled(
    transactions: pa.Table, labels: pa.Table, *, start_ms: int, end_ms: int, label_cut_ms: int, maturity_s: int
) -> LabelledPayments:
    """Do what `labelled_payments` does on stored tables."""
    event_ms = _ms(transactions["event_timestamp"])
    table = transactions.filter(pa.array((event_ms >= start_ms) & (event_ms < end_ms)))
    table = table.sort_by([("event_timestamp", "ascending"), ("transaction_id", "ascending")])
    known, is_fraud = _labels_at(table["transaction_id"], labels, label_cut_ms)
    mature = label_cut_ms - _ms(table["event_timestamp"]) >= maturity_s * 1_000
    kept = known | mature
    return LabelledPayments(
        transactions=table.filter(pa.array(kept)).combine_chunks(),
        is_fraud=is_fraud[kept],
        left_out=int((~kept).sum()),
    )


def _labels_at(transaction_ids: pa.ChunkedArray, labels: pa.Table, cut_ms: int) -> tuple[Bools, Bools]:
    """Per transaction: whether a label was known before the cut, and whether the latest of those says fraud."""
    known, is_fraud = np.zeros(len(transaction_ids), bool), np.zeros(len(transaction_ids), bool)
    labels = labels.filter(pa.array(_ms(labels["label_timestamp"]) < cut_ms))
    labels = labels.sort_by([("label_timestamp", "ascending"), ("seq", "ascending")])
    position = pc.index_in(labels["transaction_id"], value_set=transaction_ids.combine_chunks())
    named = position.is_valid().to_numpy()
    rows = position.filter(position.is_valid()).to_numpy().astype(np.int64)
    known[rows] = True
    # NumPy assigns in order, so the latest label of a transaction is the one that stays.
    is_fraud[rows] = labels["is_fraud"].to_numpy()[named]
    return known, is_fraud


def historical_tuples(store: feast.FeatureStore, spec: InputSpec, transactions: pa.Table) -> InputTuples:
    """Return the tuples of stored transactions, rows joined as of each payment's own time."""
    entities = transactions.to_pandas()
    entities[ROW] = np.arange(len(entities))
    # The on-demand view asks for the payment's time under this name: event_timestamp is the join's own.
    entities["payment_timestamp"] = entities["event_timestamp"]
    service = store.get_feature_service(MODEL_SERVICE if spec.encoder is None else HEAD_SERVICE)
    job = store.get_historical_features(entity_df=entities, features=service, full_feature_names=True)
    joined = job.to_arrow().sort_by(ROW)
    if joined.num_rows != transactions.num_rows:
        raise ModelError(
            f"the historical join returned {joined.num_rows} rows for {transactions.num_rows} payments: "
            "one row per payment was expected; check the offline store's rows for doubled versions"
        )
    return build_tuples(spec, TransactionColumns.from_arrow(transactions), historical_blocks(spec, joined))


def historical_blocks(spec: InputSpec, joined: pa.Table) -> TupleBlocks:
    """Read the blocks out of a joined table with Feast's full feature names (`sender_account_activity__...`)."""
    return TupleBlocks(
        accounts={
            view.name: of_encoder(_both(view, joined, f"sender_{view.name}__", f"receiver_{view.name}__"), spec.encoder)
            for view in spec.account_views
        },
        pairs={
            view.name: _both(view, joined, f"{view.name}__", f"{REVERSE}_{view.name}__") for view in spec.pair_views
        },
    )


def _both(view: ViewSchema, joined: pa.Table, first: str, second: str) -> RowBlock:
    columns = ["event_timestamp", "created_timestamp", *view.names]
    halves = [joined.select([prefix + name for name in columns]).rename_columns(columns) for prefix in (first, second)]
    return RowBlock.from_arrow(view, pa.concat_tables(halves, promote_options="permissive"))


def _ms(column: Any) -> Int64:
    return column.cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]
