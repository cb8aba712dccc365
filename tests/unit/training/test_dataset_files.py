"""Datasets on disk: what comes back, part by part and whole, and when they are written anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_features.errors import ModelError
from training.dataset import Dataset
from training.dataset_files import DatasetCache, DatasetKey, write_dataset

KEY = DatasetKey(
    feature_hash="f", spec_hash="s", payments="p", rows="r", start_ms=0, end_ms=1, label_cut_ms=2, maturity_s=3
)


def _same(one: Dataset, other: Dataset) -> None:
    for name, array in one.tuples.feeds().items():
        np.testing.assert_array_equal(array, other.tuples.feeds()[name], err_msg=name)
        assert array.dtype == other.tuples.feeds()[name].dtype
    for name in ("is_fraud", "event_ms", "transaction_id", "sender_id"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_a_dataset_comes_back_as_it_was(tmp_path: Path, make_dataset: Any) -> None:
    """Nulls, types, edges and order survive, in parts and as a whole; so does the count of those left out."""
    dataset = replace(make_dataset(101), left_out=4)
    first, second = dataset.take(np.arange(40)), replace(dataset.take(np.arange(40, 101)), left_out=0)
    file = write_dataset(tmp_path / "one", iter([first, second]))
    parts = list(file.parts())
    assert (len(file), [len(part) for part in parts]) == (101, [40, 61])
    _same(parts[0], first)
    _same(parts[1], second)
    _same(file.read(), dataset)
    assert file.read().left_out == 4


def test_memory_holds_one_part(tmp_path: Path, make_dataset: Any) -> None:
    """A part is written before the next one is made."""
    written: list[int] = []

    def parts() -> Iterator[Dataset]:
        for number in range(3):
            written.append((tmp_path / "one" / "rows.parquet").stat().st_size if number > 1 else 0)
            yield make_dataset(200, seed=number)

    write_dataset(tmp_path / "one", parts())
    assert written[2] > 0


def test_the_cache_writes_each_content_once(tmp_path: Path, make_dataset: Any) -> None:
    """The same key reads the file; another label cut, or a writer that failed, writes anew."""
    cache, made = DatasetCache(tmp_path), []

    def parts() -> Iterator[Dataset]:
        made.append(1)
        yield make_dataset(20)

    first = cache.get(KEY, parts())
    assert cache.get(KEY, parts()).folder == first.folder
    assert cache.get(replace(KEY, label_cut_ms=9), parts()).folder != first.folder
    assert len(made) == 2

    def failing() -> Iterator[Dataset]:
        yield make_dataset(20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get(replace(KEY, rows="new"), failing())
    assert len(cache.get(replace(KEY, rows="new"), parts())) == 20
    assert len(made) == 3


def test_the_longest_unused_goes_first(tmp_path: Path, make_dataset: Any) -> None:
    """Above the limit, what was read last stays, even alone above it."""
    big = DatasetCache(tmp_path)
    keys = [replace(KEY, rows=name) for name in "abc"]
    for age, key in enumerate(keys):
        folder = big.get(key, iter([make_dataset(50)])).folder
        os.utime(folder / "about.json", (age, age))
    os.utime(tmp_path / keys[0].name() / "about.json", (9, 9))
    size = sum(path.stat().st_size for path in (tmp_path / keys[0].name()).iterdir())
    DatasetCache(tmp_path, most_bytes=int(2.5 * size)).get(keys[0], iter(()))
    assert [(tmp_path / key.name()).exists() for key in keys] == [True, False, True]
    DatasetCache(tmp_path, most_bytes=1).get(keys[2], iter(()))
    assert [(tmp_path / key.name()).exists() for key in keys] == [False, False, True]


def test_nothing_is_no_dataset(tmp_path: Path) -> None:
    """A period without payments is refused, and leaves no file that looks like one."""
    with pytest.raises(ModelError, match="no payments"):
        DatasetCache(tmp_path).get(KEY, iter(()))
    assert not (tmp_path / KEY.name()).exists()
