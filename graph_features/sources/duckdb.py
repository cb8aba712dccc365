"""The embedded graph: Parquet segments that one process at a time writes and any number read through DuckDB."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.clock import NEVER_MS
from graph_features.errors import StoreUnavailableError
from graph_features.sources.checksum import BUCKET_ROWS, bucket_checksums, merge_checksums
from graph_features.sources.payments import EDGE_SCHEMA
from graph_features.sources.segments import Manifest, Segment, SegmentFolder, segments_to_merge
from graph_features.sources.sql import load_queries

WRITER_WAIT_S: Final = 60.0
_ACCOUNTS_AT_ONCE: Final = 1_000
_READ_TRIES: Final = 3

T = TypeVar("T")


class DuckdbGraph:
    """GraphStore (and Lockable) on a folder of this machine.

    Every write adds a segment; segments of one size are merged. Readers of other processes never wait and see either
    all of a write or nothing of it. A payment is known by its sequence number.
    """

    def __init__(self, folder: Path) -> None:
        self._files = SegmentFolder(folder)
        self._statements = {
            name: text.decode() for name, text in load_queries("graph_features.sources", "duckdb.sql").items()
        }
        self._opening = threading.Lock()
        self._databases: dict[int, duckdb.DuckDBPyConnection] = {}

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the folder can be used."""
        self._files.create()
        self._files.manifest()

    def create_schema(self) -> None:
        """Create the folder."""
        self._files.create()

    def watermark(self) -> int:
        """The ingest sequence up to which the graph is complete."""
        return self._files.manifest().watermark

    def lock(self, name: str, *, wait_s: float = 0.0) -> AbstractContextManager[bool]:
        """Hold the named lock of this folder; yields whether it was had within `wait_s`."""
        return self._files.lock(name, wait_s=wait_s)

    def write_edges(self, batch: pa.RecordBatch, *, watermark: int) -> None:
        """Write stored transactions and move the watermark (never back) in one step; known payments are left out."""
        with self._files.lock("writer", wait_s=WRITER_WAIT_S) as had:
            if not had:
                raise StoreUnavailableError(
                    f"graph folder {self._files.folder}: another process has been writing for long"
                )
            manifest = self._files.manifest()
            table = self._unknown(pa.Table.from_batches([batch]), manifest)
            segments, number = list(manifest.segments), manifest.next_segment
            if table.num_rows:
                segments.append(self._add(f"{number:08d}", table))
                number += 1
            replaced: list[Segment] = []
            while count := segments_to_merge(segments):
                replaced += segments[-count:]
                segments[-count:] = [self._merge(f"{number:08d}", segments[-count:])]
                number += 1
            manifest = Manifest(
                watermark=max(watermark, manifest.watermark), next_segment=number, segments=tuple(segments)
            )
            self._files.commit(manifest)
            self._files.retire(replaced)
            self._files.sweep(manifest)

    def read_edges(self, *, before_ms: int, after_seq: int = 0, up_to_seq: int | None = None) -> pa.Table:
        """Payments before `before_ms` with after_seq < seq <= up_to_seq (the watermark by default), canonical order."""

        def read(manifest: Manifest) -> pa.Table:
            last_seq = manifest.watermark if up_to_seq is None else up_to_seq
            return self._payments(_within(manifest, after_seq, last_seq), after_seq, last_seq, before_ms)

        return self._reading(read)

    def neighbours(self, account_ids: Sequence[str], *, before_ms: int, limit: int) -> dict[str, list[str]]:
        """Per account its most recent distinct counterparties before `before_ms`, newest first, at most `limit`.

        An account without any has an empty list; nobody is their own counterparty.
        """
        found: dict[str, list[str]] = {account_id: [] for account_id in account_ids}
        wanted = list(found)

        def read(manifest: Manifest) -> None:
            files = [str(self._files.accounts_path(segment.name)) for segment in manifest.segments]
            for start in range(0, len(wanted) if files else 0, _ACCOUNTS_AT_ONCE):
                accounts = {f"id{i}": id_ for i, id_ in enumerate(wanted[start : start + _ACCOUNTS_AT_ONCE])}
                statement = self._statements["neighbours"].format(
                    account_ids=", ".join(f"${name}" for name in accounts)
                )
                parameters = {"files": files, "before_ms": before_ms, "limit": limit, **accounts}
                found.update(self._cursor().execute(statement, parameters).fetchall())

        self._reading(read)
        return found

    def checksum(self, *, bucket: int | None = None) -> dict[int, tuple[int, int]]:
        """Count and checksum of payments per bucket, or per sequence number of one `bucket`."""
        first = -1 if bucket is None else bucket * BUCKET_ROWS - 1
        last = NEVER_MS if bucket is None else first + BUCKET_ROWS

        def read(manifest: Manifest) -> dict[int, tuple[int, int]]:
            parts = (self._payments([segment], first, last, NEVER_MS) for segment in _within(manifest, first, last))
            return merge_checksums(bucket_checksums(part, bucket) for part in parts)

        return self._reading(read)

    def count_account(self, account_id: str, *, devices: Sequence[str], cards: Sequence[str]) -> int:
        """Payments of the account, and those of others with one of these devices or cards."""
        wanted = {"account_id": account_id, "devices": list(devices), "cards": list(cards)}
        return self._reading(lambda manifest: sum(self._count(segment, wanted) for segment in manifest.segments))

    def erase_account(self, account_id: str, *, devices: Sequence[str], cards: Sequence[str]) -> None:
        """Write the segments that speak of the account anew without it, and remove the old files at once."""
        wanted = {"account_id": account_id, "devices": list(devices), "cards": list(cards)}
        with self._files.lock("writer", wait_s=WRITER_WAIT_S) as had:
            if not had:
                raise StoreUnavailableError(f"graph folder {self._files.folder}: another process writes for long")
            manifest = self._files.manifest()
            segments, number = [], manifest.next_segment
            for segment in manifest.segments:
                if not self._count(segment, wanted):
                    segments.append(segment)
                    continue
                statement = self._to_file("erase_payments", self._files.payments_path(f"{number:08d}"))
                self._cursor().execute(statement, {"files": self._payment_files(segment), **wanted})
                segments.append(self._finish(f"{number:08d}"))
                number += 1
            kept = tuple(segment for segment in segments if segment.rows)
            changed = Manifest(watermark=manifest.watermark, next_segment=number, segments=kept)
            self._files.commit(changed)
            self._files.sweep(changed, keep_s=0.0)

    def _count(self, segment: Segment, wanted: dict[str, Any]) -> int:
        parameters = {"files": self._payment_files(segment), **wanted}
        row = self._cursor().execute(self._statements["count_account"], parameters).fetchone()
        return 0 if row is None else int(row[0])

    def _payment_files(self, segment: Segment) -> list[str]:
        return [str(self._files.payments_path(segment.name))]

    def close(self) -> None:
        """Release DuckDB's memory; the graph can be used again."""
        with self._opening:
            database = self._databases.pop(os.getpid(), None)
        if database is not None:
            database.close()

    def _payments(self, segments: Sequence[Segment], after_seq: int, up_to_seq: int, before_ms: int) -> pa.Table:
        if not segments:
            return EDGE_SCHEMA.empty_table()
        parameters = {
            "files": [str(self._files.payments_path(segment.name)) for segment in segments],
            "after_seq": after_seq,
            "up_to_seq": up_to_seq,
            "before_ms": before_ms,
        }
        return (
            self._cursor().sql(self._statements["read_payments"], params=parameters).to_arrow_table().cast(EDGE_SCHEMA)
        )

    def _unknown(self, table: pa.Table, manifest: Manifest) -> pa.Table:
        """The rows of `table` that no segment holds."""
        if table.num_rows == 0:
            return table
        first, last = int(pc.min(table["seq"]).as_py()), int(pc.max(table["seq"]).as_py())
        segments = _within(manifest, first - 1, last)
        if not segments:
            return table
        files = [str(self._files.payments_path(segment.name)) for segment in segments]
        parameters = {"files": files, "first_seq": first, "last_seq": last}
        known = self._cursor().sql(self._statements["read_seqs"], params=parameters).to_arrow_table()["seq"]
        return table.filter(pc.invert(pc.is_in(table["seq"], value_set=known.combine_chunks())))

    def _add(self, name: str, table: pa.Table) -> Segment:
        with self._cursor() as cursor:
            cursor.register("batch", table)
            cursor.execute(self._to_file("write_payments", self._files.payments_path(name)))
            cursor.unregister("batch")
        return self._finish(name)

    def _merge(self, name: str, segments: Sequence[Segment]) -> Segment:
        files = [str(self._files.payments_path(segment.name)) for segment in segments]
        statement = self._to_file("merge_payments", self._files.payments_path(name))
        self._cursor().execute(statement, {"files": files})
        return self._finish(name)

    def _finish(self, name: str) -> Segment:
        """Write the second order of a segment's payments, flush both files and describe them."""
        files = {"files": [str(self._files.payments_path(name))]}
        cursor = self._cursor()
        cursor.execute(self._to_file("write_accounts", self._files.accounts_path(name)), files)
        row = cursor.execute(self._statements["extent"], files).fetchone()
        assert row is not None
        self._files.flush(name)
        return Segment(name=name, rows=row[0], min_seq=row[1], max_seq=row[2])

    def _to_file(self, statement: str, path: Path) -> str:
        return self._statements[statement].format(path=str(path).replace("'", "''"))

    def _reading(self, read: Callable[[Manifest], T]) -> T:
        """Run `read` on the newest manifest, again if its files were cleared away meanwhile."""
        for tries in range(1, _READ_TRIES + 1):
            manifest = self._files.manifest()
            try:
                return read(manifest)
            except duckdb.Error as error:
                if tries == _READ_TRIES or self._files.manifest() == manifest:
                    raise StoreUnavailableError(
                        f"graph folder {self._files.folder}: {error}; if files are damaged, delete it and sync again"
                    ) from error
        raise AssertionError("unreachable")

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of the caller's own to this process's DuckDB; a forked child opens another."""
        with self._opening:
            database = self._databases.get(os.getpid())
            if database is None:
                # Nothing here needs an extension, and none is to be fetched from the network.
                database = duckdb.connect(
                    ":memory:",
                    config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"},
                )
                # The parent's stays in the dictionary: to free it in a forked child is to wait for threads it lacks.
                self._databases[os.getpid()] = database
            return database.cursor()


def _within(manifest: Manifest, after_seq: int, up_to_seq: int) -> list[Segment]:
    return [one for one in manifest.segments if one.max_seq > after_seq and one.min_seq <= up_to_seq]
