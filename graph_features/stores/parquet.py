"""The offline store as Parquet files: one folder per view, one file per written part.

Many processes may write and read at once. `parts.json` in the folder names the files that count, in the order of their
writes; it is replaced atomically, under a lock that only writers take. Readers take its list (`live_files`) and open
what it names. A file that no longer counts, because its part was written again or small files were merged, stays for
RETIRED_AFTER_S, so that a reader who has the older list finds everything on it, once. Each file carries the number of
its write (`write_order`): of two rows with the same keys, event and created timestamps the later written one counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from graph_features.errors import SchemaMismatchError, StoreUnavailableError
from graph_features.schema import ViewSchema
from graph_features.stores.base import OnWritten, Written
from graph_features.stores.past import is_past, names_of, newest_before
from graph_features.stores.versions import WRITE_ORDER, last_written, once

MANIFEST = "parts.json"
RETIRED_AFTER_S = 600
FILES_PER_MERGE = 32
SMALL_ROWS = (2_000, 100_000)
"""Files are merged with others of their class: fewer rows than the first, fewer than the second; larger ones never."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One live file. `part` is empty for merged files."""

    file: str
    part: str
    order: int
    rows: int


@dataclass(kw_only=True)
class Manifest:
    """What parts.json holds: column types by name, the number of the next write, the live files."""

    types: dict[str, str] = field(default_factory=dict)
    next_order: int = 1
    parts: list[Part] = field(default_factory=list)


class ParquetOfflineStore:
    """Every version of every row under one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the folder can be written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailableError(f"the offline store {self._folder} cannot be made: {error}") from error
        if not os.access(self._folder, os.W_OK):
            raise StoreUnavailableError(f"the offline store {self._folder} cannot be written to")

    def create_view(self, view: ViewSchema) -> None:
        """Create the view's folder and an empty file with its columns; raise SchemaMismatchError.

        New features get such a file of their own, so that readers, who take columns by name, always find them.
        """
        with _locked(self._folder / view.name) as folder:
            manifest = _load(folder)
            types = {column.name: str(column.type) for column in view.arrow_schema}
            for name, dtype in types.items():
                if manifest.types.get(name, dtype) != dtype:
                    raise SchemaMismatchError(
                        f"{folder}: column {name} is {manifest.types[name]}, the feature is {dtype} now; rename the "
                        "feature, or delete the folder and backfill"
                    )
            if types.keys() - manifest.types.keys():
                manifest.types.update(types)
                name = f"{_take_order(folder, manifest):010d}-schema.parquet"
                _write(folder / name, view.arrow_schema.append(WRITE_ORDER), [])
                manifest.parts.append(Part(file=name, part=f"schema {view.fingerprint:016x}", order=0, rows=0))
                _save(folder, manifest)

    def write(self, view: ViewSchema, table: pa.Table, *, part: str) -> int:
        """Write the rows of `part` as one file and return their number; an earlier file of the part counts no more."""
        return self.write_all(view, [table], part=part, on_written=lambda _: None)

    def write_all(self, view: ViewSchema, tables: Iterable[pa.Table], *, part: str, on_written: OnWritten) -> int:
        """Write all tables as one file under a temporary name, rename it, and call `on_written` once it counts."""
        self.create_view(view)
        with _locked(self._folder / view.name) as folder:
            order = _take_order(folder, _load(folder))
        # The long part is done without the lock; the order taken above says whose row counts.
        name = f"{order:010d}-{_slug(part)}.parquet"
        rows = _write(folder / name, view.arrow_schema.append(WRITE_ORDER), _numbered(view, tables, order))
        with _locked(folder):
            manifest = _load(folder)
            written = Part(file=name, part=part, order=order, rows=rows)
            tries = [*(old for old in manifest.parts if old.part == part), written]
            manifest.parts.append(written)
            _retire(folder, manifest, sorted(tries, key=lambda one: one.order)[:-1])
            _merge_small(folder, view, manifest)
            _save(folder, manifest)
            _sweep(folder, manifest)
        on_written(Written(rows=rows, name=f"{view.name}/{name}"))
        return rows

    def state(self, views: Sequence[ViewSchema]) -> str:
        return repr([[(part.file, part.rows) for part in _load(self._folder / view.name).parts] for view in views])

    def count_entity(self, view: ViewSchema, entity_id: str) -> int:
        """Counts in every file, those included that count no more and wait for their readers to end."""
        return sum(
            int(pc.sum(names_of(view, pq.read_table(path, partitioning=None), [entity_id])).as_py() or 0)
            for path in (self._folder / view.name).glob("*.parquet")
        )

    def delete_entities(self, view: ViewSchema, entity_ids: Sequence[str]) -> int:
        return self._rewrite(view, lambda table: names_of(view, table, entity_ids, lists=False))

    def delete_before(self, view: ViewSchema, before_ms: int) -> int:
        with _locked(self._folder / view.name) as folder:
            newest = newest_before(view, [folder / part.file for part in _load(folder).parts], before_ms)
        return self._rewrite(view, lambda table: is_past(view, table, before_ms, newest))

    def _rewrite(self, view: ViewSchema, unwanted: Callable[[pa.Table], pa.ChunkedArray]) -> int:
        """Write the live files anew without unwanted rows and delete every other file at once; return the rows lost."""
        lost = 0
        with _locked(self._folder / view.name) as folder:
            manifest = _load(folder)
            for position, part in enumerate(manifest.parts):
                table = pq.read_table(folder / part.file, partitioning=None)
                kept = table.filter(pc.invert(unwanted(table)))
                if kept.num_rows < table.num_rows:
                    lost += table.num_rows - kept.num_rows
                    name = f"{_take_order(folder, manifest):010d}-kept.parquet"
                    _write(folder / name, kept.schema, [kept])
                    manifest.parts[position] = replace(part, file=name, rows=kept.num_rows)
            _save(folder, manifest)
            if lost:
                live = {part.file for part in manifest.parts}
                for path in folder.glob("*.parquet*"):
                    if path.name not in live:
                        path.unlink(missing_ok=True)
        return lost

    def close(self) -> None:
        """Nothing is kept open."""


def live_files(folder: Path) -> list[Path]:
    """Return the files of a view that count; raise StoreUnavailableError when the view was never created."""
    if not (folder / MANIFEST).is_file():
        raise StoreUnavailableError(f"no offline rows in {folder}: run `ringfence apply`, then `ringfence backfill`")
    return [folder / part.file for part in _load(folder).parts]


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Hold the folder's lock, which also keeps threads of one process apart."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder


def _load(folder: Path) -> Manifest:
    try:
        data: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Manifest()
    return Manifest(**{**data, "parts": [Part(**part) for part in data["parts"]]})


def _save(folder: Path, manifest: Manifest) -> None:
    _replace(folder / MANIFEST, json.dumps(asdict(manifest)).encode())


def _take_order(folder: Path, manifest: Manifest) -> int:
    """Number the next write; the lock is held."""
    order = manifest.next_order
    manifest.next_order += 1
    _save(folder, manifest)
    return order


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreUnavailableError(f"the offline store cannot write {path}: {error}; see to the disk") from error
    finally:
        temporary.unlink(missing_ok=True)


def _numbered(view: ViewSchema, tables: Iterable[pa.Table], order: int) -> Iterator[pa.Table]:
    """Yield each table without repeated versions, with the number of this write behind its columns."""
    for table in tables:
        rows = once(view, view.check(table))
        yield rows.append_column(WRITE_ORDER, pa.repeat(pa.scalar(order), rows.num_rows))


def _write(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write a file whole or not at all; return its number of rows. Raises StoreUnavailableError."""
    temporary = path.with_name(path.name + ".tmp")
    rows = 0
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=1) as writer:
            for table in tables:
                writer.write_table(table)
                rows += table.num_rows
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreUnavailableError(f"the offline store cannot write {path}: {error}; see to the disk") from error
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def _slug(part: str) -> str:
    """A file name for any part name."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", part)[:60]
    return plain if plain == part else f"{plain}-{hashlib.sha256(part.encode()).hexdigest()[:8]}"


def _retire(folder: Path, manifest: Manifest, parts: list[Part]) -> None:
    """Take files off the list; their age starts anew, and `_sweep` goes by it."""
    for part in parts:
        os.utime(folder / part.file)
    manifest.parts = [part for part in manifest.parts if part not in parts]


def _merge_small(folder: Path, view: ViewSchema, manifest: Manifest) -> None:
    """Merge small files of one class into one as soon as there are enough of them."""
    below = 0
    for limit in SMALL_ROWS:
        small = [part for part in manifest.parts if below <= part.rows < limit]
        below = limit
        if len(small) < FILES_PER_MERGE:
            continue
        tables = [pq.read_table(folder / part.file, partitioning=None) for part in small]
        merged = last_written(view, pa.concat_tables(tables, promote_options="default"))
        order = _take_order(folder, manifest)
        name = f"{order:010d}-merged.parquet"
        _write(folder / name, merged.schema, [merged])
        _retire(folder, manifest, small)
        manifest.parts.append(Part(file=name, part="", order=order, rows=merged.num_rows))


def _sweep(folder: Path, manifest: Manifest) -> None:
    """Now and then delete what stopped to count long enough ago, and what a crash left behind."""
    if manifest.next_order % FILES_PER_MERGE:
        return
    before = time.time() - RETIRED_AFTER_S
    live = {part.file for part in manifest.parts}
    for path in folder.iterdir():
        if path.suffix not in (".parquet", ".tmp") or path.name in live:
            continue
        # Another writer's temporary file may get its final name, or be swept by somebody else, at any moment.
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()
