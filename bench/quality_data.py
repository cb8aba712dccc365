"""The book's payments through the platform's own pipeline: ingest, record store, event rows, input tuples.

Weeks are cached as Parquet by content, so that a second run reads the file and computes no feature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.handbook import MAPPING
from bench.timing import note
from graph_features.catalog import catalog
from graph_features.clock import DAY_MS, MAX_EVENT_MS
from graph_features.edges import EdgeTable
from graph_features.ingest.ingest import ingest_file
from graph_features.ingest.mapping import load_mapping
from graph_features.input_spec import InputSpec
from graph_features.neighbour_spec import NEIGHBOUR_PROFILE
from graph_features.settings import FeatureSettings, IngestSettings
from graph_features.sources.sqlite import SqliteRecords
from graph_features.transaction import TransactionColumns
from training.dataset import Dataset, labelled
from training.dataset_files import DatasetCache, DatasetFile, DatasetKey
from training.evaluate import unknown_senders
from training.point_in_time import tuples_at

WEEK_MS = 7 * DAY_MS
PART_MS = WEEK_MS
"""Payments of so long are turned into tuples at once: each time, the histories of their accounts are walked anew."""

NEIGHBOURS = 10


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Train on [train_from, train_to), whose labels are all known a week later, when the test week starts."""

    name: str
    train_from_ms: int
    train_to_ms: int

    @property
    def test_from_ms(self) -> int:
        return self.train_to_ms + WEEK_MS

    @classmethod
    def of(cls, day: str, *, train_days: int) -> Fold:
        """The fold whose last seven training days begin on `day`."""
        end = int(np.datetime64(day, "ms").astype(np.int64)) + WEEK_MS
        return cls(name=day, train_from_ms=end - train_days * DAY_MS, train_to_ms=end)


class Payments:
    """The book's file, its answer key, and its tuples under `home`."""

    def __init__(self, data: Path, home: Path) -> None:
        self.data, self.home = data, home
        self.settings, self.ingest = FeatureSettings(), IngestSettings(base_currency="EUR")
        self.spec = InputSpec.derive(
            catalog().event_views(),
            feature_hash=catalog().feature_hash(settings=self.settings),
            profile=NEIGHBOUR_PROFILE,
            neighbours=NEIGHBOURS,
            base_exponent=self.settings.base_exponent,
        )

    @cached_property
    def raw(self) -> pd.DataFrame:
        """The file itself: the answer key for reports, and what the book's own features are made of."""
        frame: pd.DataFrame = pq.read_table(self.data).to_pandas()
        return frame

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.data.read_bytes()).hexdigest()

    @cached_property
    def records(self) -> SqliteRecords:
        """The record store with the whole file ingested; once per file."""
        folder = self.home / f"records-{self.digest[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        store = SqliteRecords(folder / "records.sqlite", cache=folder / "cache")
        done = folder / "ingested"
        if not done.is_file():
            note("ingesting")
            report = ingest_file(
                self.data,
                kind="transactions",
                mapping=load_mapping(MAPPING),
                records=store,
                settings=self.ingest,
                mark_pending=None,
                rejects_path=folder / "rejects.csv",
            )
            done.write_text(str(report), encoding="utf-8")
        return store

    @cached_property
    def edges(self) -> EdgeTable:
        note("reading the record store")
        found = self.records.read_all()
        return EdgeTable.from_arrow(found.transactions, found.statuses, found.labels, max_seq=found.max_seq)

    @cached_property
    def frauds(self) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.int64]]:
        """Sender and time of every fraud."""
        raw = self.raw[self.raw["TX_FRAUD"] == 1]
        sender = "c" + raw["CUSTOMER_ID"].astype(str)
        return sender.to_numpy(dtype=object), raw["TX_DATETIME"].to_numpy().astype("datetime64[ms]").astype(np.int64)

    def scenario(self, dataset: Dataset) -> npt.NDArray[np.int8]:
        """Which scenario made each payment a fraud, 0 for none."""
        by_id = self.raw.set_index("TRANSACTION_ID")["TX_FRAUD_SCENARIO"]
        return by_id.loc[dataset.transaction_id.astype(np.int64)].to_numpy()

    def week(self, start_ms: int) -> DatasetFile:
        """The labelled tuples of seven days."""
        spec_hash = hashlib.sha256(json.dumps(self.spec.to_json(), sort_keys=True).encode()).hexdigest()
        key = DatasetKey(
            feature_hash=self.spec.feature_hash,
            spec_hash=spec_hash,
            payments=self.digest,
            rows="",
            start_ms=start_ms,
            end_ms=start_ms + WEEK_MS,
            label_cut_ms=MAX_EVENT_MS,
            maturity_s=0,
        )
        return DatasetCache(self.home / "datasets").get(key, self._parts(start_ms))

    def _parts(self, start_ms: int) -> Iterator[Dataset]:
        end_ms = start_ms + WEEK_MS
        note(f"features of the week of {np.datetime64(start_ms, 'ms').astype('datetime64[D]')}")
        for at_ms in range(start_ms, end_ms, PART_MS):
            payments = labelled(
                self._transactions,
                self._labels,
                start_ms=at_ms,
                end_ms=min(at_ms + PART_MS, end_ms),
                label_cut_ms=MAX_EVENT_MS,
                maturity_s=0,
            )
            table = payments.transactions
            columns = TransactionColumns.from_arrow(table)
            yield Dataset(
                tuples=tuples_at(self.spec, self.edges, columns, settings=self.settings),
                is_fraud=payments.is_fraud,
                event_ms=columns.event_ms,
                transaction_id=table["transaction_id"].to_numpy(),
                sender_id=table["sender_id"].to_numpy(),
            )

    @cached_property
    def _stored(self) -> tuple[pa.Table, pa.Table]:
        found = self.records.read_all()
        return found.transactions, found.labels

    @property
    def _transactions(self) -> pa.Table:
        return self._stored[0]

    @property
    def _labels(self) -> pa.Table:
        return self._stored[1]

    def between(self, start_ms: int, end_ms: int) -> Iterator[Dataset]:
        """Yield a period part by part, out of the weeks that end where it ends."""
        first = end_ms - -(-(end_ms - start_ms) // WEEK_MS) * WEEK_MS
        for week_ms in range(first, end_ms, WEEK_MS):
            for part in self.week(week_ms).parts():
                if len(chosen := part.between(start_ms, end_ms)):
                    yield chosen

    def training(self, fold: Fold) -> Dataset:
        return Dataset.concat(list(self.between(fold.train_from_ms, fold.train_to_ms)))

    def test(self, fold: Fold) -> Dataset:
        """The test week without the customers whose fraud is known by then."""
        dataset = self.week(fold.test_from_ms).read()
        sender, event_ms = self.frauds
        since = event_ms >= fold.train_to_ms - WEEK_MS
        keep = unknown_senders(dataset, sender[since], event_ms[since], train_to_ms=fold.train_to_ms)
        return dataset.take(np.flatnonzero(keep))
