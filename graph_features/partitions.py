"""A graph cut by account: files of the payments of each partition, which the workers of a node map.

A partition has every payment that one of its accounts sent or received, so that it alone gives the rows of those,
with the running totals of counterparties beside it. To make the files takes one pass over the records, a batch at a
time, and then one partition after the other in memory; to use them takes one partition's indexes.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from graph_features.contracts import STORED_TRANSACTION_SCHEMA
from graph_features.edge_files import load_edges, save_edges
from graph_features.edges import EdgeTable, Int64, in_words
from graph_features.errors import StoreUnavailableError
from graph_features.sources.base import Records, RecordStore
from graph_features.sources.filelock import file_lock
from graph_features.sources.records import LABELS, STATUSES, TRANSACTIONS, RecordKind
from graph_features.standing_files import PartitionStandings, partitions_of, save_standings

BATCH_ROWS: Final = 500_000
PREPARE_WAIT_S: Final = 3_600.0
KEPT_S: Final = 86_400.0
"""Files of a job that nobody prepared for so long are removed by the next one that needs the place."""

PARTIES: Final = ("sender_id", "receiver_id")


@runtime_checkable
class HasCache(Protocol):
    """Stores with a folder on this machine for what can be made anew at any time."""

    @property
    def cache_folder(self) -> Path: ...


@dataclass(frozen=True, kw_only=True)
class PartitionedEdges:
    """Files of all partitions below `folder`: there completely or not at all."""

    folder: Path
    partitions: int

    def prepare(self, records: RecordStore, *, before_ms: int, max_seq: int) -> None:
        """Have the files of what happened before `before_ms` and is numbered up to `max_seq`.

        The first process of a machine that asks makes them, the others wait for it. `folder` stands for the arguments
        and for the store: whoever has others names another folder.
        """
        if self._used():
            return
        with file_lock(self._lock, wait_s=PREPARE_WAIT_S) as held:
            if not held:
                raise StoreUnavailableError(f"{self.folder} was not made by another process in {PREPARE_WAIT_S:.0f} s")
            if not self.folder.exists():
                _remove_old(self.folder.parent)
                _make(self.folder, records.read_all(max_seq=max_seq), self.partitions, before_ms)

    def _used(self) -> bool:
        """Whether the files are there; then they count as used now, so that no other job removes them as old."""
        try:
            os.utime(self.folder)
        except FileNotFoundError:
            return False
        return True

    @property
    def _lock(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lock")

    def edges(self, partition: int) -> EdgeTable:
        """Return a partition's table, mapped; its standings tell of every other account."""
        standings = PartitionStandings([_standings(self.folder, other) for other in range(self.partitions)])
        return replace(load_edges(_edges(self.folder, partition)), standings=standings)

    def discard(self) -> None:
        """Remove the files; who has them mapped keeps them."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.unlink(missing_ok=True)


def own_accounts(edges: EdgeTable, partition: int, partitions: int) -> Int64:
    """Return the codes of a partition's own accounts among those in its table."""
    return np.flatnonzero(partitions_of(edges.account_ids, partitions) == partition)


def _edges(folder: Path, partition: int) -> Path:
    return folder / f"edges-{partition}"


def _standings(folder: Path, partition: int) -> Path:
    return folder / f"standings-{partition}"


def _remove_old(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.iterdir():
        with suppress(FileNotFoundError):  # another job was quicker
            if other.is_dir() and time.time() - other.stat().st_mtime > KEPT_S:
                PartitionedEdges(folder=other, partitions=0).discard()


def _make(folder: Path, records: Records, partitions: int, before_ms: int) -> None:
    building = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.building")
    building.mkdir()
    try:
        _cut(building, records.transactions, partitions, before_ms)
        statuses = _before(records.statuses, STATUSES, before_ms)
        labels = _before(records.labels, LABELS, before_ms)
        for partition in range(partitions):
            with pa.memory_map(str(_cut_file(building, partition))) as source:
                payments = pa.ipc.open_file(source).read_all()
                edges = EdgeTable.from_arrow(payments, statuses, labels, max_seq=records.max_seq)
            _cut_file(building, partition).unlink()
            save_edges(edges, _edges(building, partition))
            own = own_accounts(edges, partition, partitions)
            save_standings(edges, own, _standings(building, partition))
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _cut_file(folder: Path, partition: int) -> Path:
    return folder / f"payments-{partition}.arrow"


def _cut(folder: Path, payments: pa.Table, partitions: int, before_ms: int) -> None:
    """Write each partition's payments to a file of its own, a batch at a time."""
    with ExitStack() as opened:
        writers = []
        for partition in range(partitions):
            sink = opened.enter_context(pa.OSFile(str(_cut_file(folder, partition)), "wb"))
            writers.append(opened.enter_context(pa.ipc.new_file(sink, STORED_TRANSACTION_SCHEMA)))
        for batch in _batches(payments, before_ms):
            parties = [_partitions_of(batch[name], partitions) for name in PARTIES]
            for partition, writer in enumerate(writers):
                here = (parties[0] == partition) | (parties[1] == partition)
                writer.write_table(batch.filter(pa.array(here)))


def _batches(payments: pa.Table, before_ms: int) -> Iterator[pa.Table]:
    for start in range(0, payments.num_rows, BATCH_ROWS):
        piece = payments.slice(start, BATCH_ROWS).select(STORED_TRANSACTION_SCHEMA.names)
        yield _before(piece, TRANSACTIONS, before_ms).cast(STORED_TRANSACTION_SCHEMA)


def _before(table: pa.Table, kind: RecordKind, before_ms: int) -> pa.Table:
    ts_ms = table[kind.time].cast(pa.int64()).to_numpy()
    return table if bool(np.all(ts_ms < before_ms)) else table.filter(pa.array(ts_ms < before_ms))


def _partitions_of(accounts: pa.ChunkedArray, partitions: int) -> Int64:
    words, (code,) = in_words(accounts)
    return partitions_of(words.to_pylist(), partitions)[code]
