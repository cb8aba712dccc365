"""Datasets as Parquet: written payment by payment as they are read, so that a period may be larger than memory."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from graph_features.errors import ModelError
from graph_features.sources.filelock import file_lock
from graph_features.tuples import InputTuples
from training.dataset import Dataset

ROWS_FILE: Final = "rows.parquet"
ABOUT_FILE: Final = "about.json"
SIDES: Final = ("sender", "receiver")
LOCK_WAIT_S: Final = 24 * 3_600.0


@dataclass(frozen=True, kw_only=True)
class DatasetKey:
    """What decides every byte of a dataset: payments and their labels, the rows that they read, and how.

    `payments` names the labelled payments, `rows` the state of the store that features were read from.
    """

    feature_hash: str
    spec_hash: str
    payments: str
    rows: str
    start_ms: int
    end_ms: int
    label_cut_ms: int
    maturity_s: int

    def name(self) -> str:
        """A folder's name: the same for the same content."""
        text = json.dumps(vars(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


class DatasetCache:
    """One folder per dataset below `folder`, the longest unused ones deleted above `most_bytes`.

    May be deleted at any time; processes may share it.
    """

    def __init__(self, folder: Path, *, most_bytes: int = 2**62) -> None:
        self._folder, self._most_bytes = folder, most_bytes

    def get(self, key: DatasetKey, parts: Iterable[Dataset]) -> DatasetFile:
        """Return the file of `key`, written from `parts` unless it is there; a killed writer leaves nothing.

        Raises ModelError when there are no payments, or another process writes for longer than LOCK_WAIT_S.
        """
        target = self._folder / key.name()
        self._folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self._folder / "lock", wait_s=LOCK_WAIT_S) as held:
            if not held:
                raise ModelError(
                    f"another process has held {self._folder} for {LOCK_WAIT_S / 3_600:.0f} hours: end it, try again"
                )
            if not (target / ABOUT_FILE).is_file():
                draft = target.with_suffix(".draft")
                for left in (draft, target):
                    shutil.rmtree(left, ignore_errors=True)
                write_dataset(draft, parts, about=vars(key))
                draft.rename(target)
            (target / ABOUT_FILE).touch()
            self._trim(keep=target)
        return DatasetFile(target)

    def _trim(self, *, keep: Path) -> None:
        """Delete what was not read for longest until the rest fits; `keep` stays in any case."""
        found = sorted(self._folder.glob(f"*/{ABOUT_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
        size = 0
        for folder in (path.parent for path in found):
            size += sum(path.stat().st_size for path in folder.iterdir())
            if size > self._most_bytes and folder != keep:
                shutil.rmtree(folder)


def write_dataset(folder: Path, parts: Iterable[Dataset], *, about: dict[str, Any] | None = None) -> DatasetFile:
    """Write parts of one period, in order of time, each as one row group; memory holds one part.

    Raises ModelError without any part.
    """
    folder.mkdir(parents=True)
    writer: pq.ParquetWriter | None = None
    rows = frauds = left_out = 0
    try:
        for part in parts:
            table = _to_arrow(part)
            if writer is None:
                # Floats of 400 columns neither repeat nor sort: dictionaries would only cost time.
                writer = pq.ParquetWriter(
                    folder / ROWS_FILE, table.schema, compression="zstd", compression_level=1, use_dictionary=False
                )
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            rows, frauds, left_out = rows + len(part), frauds + int(part.is_fraud.sum()), left_out + part.left_out
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise ModelError("a dataset of no payments cannot be written: choose a period that has some")
    counted = {"rows": rows, "frauds": frauds, "left_out": left_out}
    (folder / ABOUT_FILE).write_text(json.dumps({**(about or {}), **counted}, indent=1), encoding="utf-8")
    return DatasetFile(folder)


class DatasetFile:
    """A dataset on disk; read it whole, or part by part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return int(self.about["rows"])

    def parts(self) -> Iterator[Dataset]:
        """Yield the parts as they were written; memory holds one."""
        with pq.ParquetFile(self.folder / ROWS_FILE) as file:
            for group in range(file.num_row_groups):
                yield _from_arrow(file.read_row_group(group, use_threads=False))

    def read(self) -> Dataset:
        """Return everything."""
        return replace(Dataset.concat(list(self.parts())), left_out=int(self.about["left_out"]))


def _to_arrow(part: Dataset) -> pa.Table:
    tuples, n = part.tuples, len(part)
    columns: dict[str, pa.Array] = {
        "transaction_id": pa.array(part.transaction_id, pa.string()),
        "sender_id": pa.array(part.sender_id, pa.string()),
        "event_ms": pa.array(part.event_ms, pa.int64()),
        "is_fraud": pa.array(part.is_fraud),
    }
    for name in ("sender_x", "receiver_x", "transaction_x"):
        columns[name] = _fixed(getattr(tuples, name))
    edges = _fixed(tuples.neighbour_x)
    for side, first in zip(SIDES, (tuples.first_edge[: n + 1], tuples.first_edge[n:]), strict=True):
        columns[f"{side}_neighbours"] = pa.ListArray.from_arrays(pa.array(first, pa.int32()), edges)
    return pa.table(columns)


def _fixed(x: npt.NDArray[np.float32]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x).ravel(), pa.float32()), x.shape[1])


def _from_arrow(table: pa.Table) -> Dataset:
    table = table.combine_chunks()
    blocks, counts = [], []
    for side in SIDES:
        column = table[f"{side}_neighbours"].chunk(0)
        offsets = column.offsets.to_numpy()
        blocks.append(_matrix(column.values)[offsets[0] : offsets[-1]])
        counts.append(np.diff(offsets))
    count = np.concatenate(counts)
    tuples = InputTuples(
        **{name: _matrix(table[name].chunk(0)) for name in ("sender_x", "receiver_x", "transaction_x")},
        neighbour_x=np.concatenate(blocks),
        neighbour_index=np.repeat(np.arange(len(count)), count),
    )
    return Dataset(
        tuples=tuples,
        is_fraud=table["is_fraud"].to_numpy(),
        event_ms=table["event_ms"].to_numpy(),
        transaction_id=table["transaction_id"].to_numpy(),
        sender_id=table["sender_id"].to_numpy(),
    )


def _matrix(column: pa.FixedSizeListArray) -> npt.NDArray[np.float32]:
    width = column.type.list_size
    values = column.values.to_numpy(zero_copy_only=False)
    return np.asarray(values[column.offset * width : (column.offset + len(column)) * width], np.float32).reshape(
        -1, width
    )
