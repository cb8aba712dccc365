"""A retrieval whose answer comes in chunks: as one table, as batches, as Parquet files, as a table of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.saved_dataset import SavedDatasetStorage

from feature_repo.stores.asof import ColumnarRetrievalJob

Persist = Callable[[Iterator[pa.Table], SavedDatasetStorage, bool], None]


class StreamedRetrievalJob(ColumnarRetrievalJob):
    """A retrieval that runs when its answer is asked for.

    `to_arrow` and `to_df` hold all of it in memory; `to_batches`, `to_parquet` and `persist` a chunk of
    `rows_per_chunk` rows at a time, to which on-demand views are applied as they are to the whole.
    """

    def __init__(
        self,
        stream: Callable[[], Iterator[pa.Table]],
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
        persist_as_table: Persist | None = None,
        query: Callable[[], str] | None = None,
        base: Path | None = None,
    ) -> None:
        super().__init__(
            lambda: pa.concat_tables(stream()),
            full_feature_names=full_feature_names,
            on_demand_feature_views=on_demand_feature_views,
            metadata=metadata,
        )
        self._stream = stream
        self._persist_as_table = persist_as_table
        self._query = query
        self._base = base or Path()

    def to_sql(self) -> str:
        """The query; for a historical retrieval the one that Feast's own store would run."""
        if self._query is None:
            raise NotImplementedError("this retrieval is more than one query")
        return self._query()

    def to_batches(self, max_rows: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the answer in order, at most `max_rows` rows at a time; types are those of the first batch."""
        schema: pa.Schema | None = None
        for chunk in self._chunks():
            schema = schema or chunk.schema
            # A table without rows has no batches, but its columns are an answer too.
            empty = [] if chunk.num_rows else [pa.RecordBatch.from_pylist([], schema)]
            yield from empty or chunk.cast(schema).combine_chunks().to_batches(max_rows)

    def to_parquet(self, path: Path | str, *, rows_per_file: int = 1_000_000, overwrite: bool = False) -> list[Path]:
        """Write the answer as Parquet files of up to `rows_per_file` rows into a folder; return them in order.

        A folder that holds something raises SavedDatasetLocationAlreadyExists unless `overwrite`; what is written
        appears under its name only when all of it is there.
        """
        if rows_per_file < 1:
            raise ValueError(f"rows_per_file: expected at least 1, got {rows_per_file}")
        folder = self._base / path
        if folder.exists() and not overwrite and (folder.is_file() or any(folder.iterdir())):
            raise SavedDatasetLocationAlreadyExists(location=str(folder))
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            names = _write_files(self.to_batches(), unfinished, rows_per_file)
            if folder.is_file():
                folder.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return [folder / name for name in names]

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,  # noqa: ARG002 - Feast's
    ) -> None:
        """Write the answer to a saved dataset: a table in PostgreSQL, or a folder of Parquet files."""
        if isinstance(storage, SavedDatasetFileStorage):
            self.to_parquet(storage.file_options.uri, overwrite=allow_overwrite)
        elif self._persist_as_table is None:
            raise NotImplementedError("this retrieval can be saved as files only (SavedDatasetFileStorage)")
        else:
            tables = (pa.Table.from_batches([batch]) for batch in self.to_batches())
            self._persist_as_table(tables, storage, allow_overwrite)

    def _chunks(self) -> Iterator[pa.Table]:
        for chunk in self._stream():
            if not self.on_demand_feature_views:
                yield chunk
                continue
            whole = ColumnarRetrievalJob(
                lambda chunk=chunk: chunk,  # type: ignore[misc]
                full_feature_names=self.full_feature_names,
                on_demand_feature_views=self.on_demand_feature_views,
                metadata=self.metadata,
            )
            yield whole.to_arrow()


def _write_files(batches: Iterator[pa.RecordBatch], folder: Path, rows_per_file: int) -> list[str]:
    names: list[str] = []
    writer: pq.ParquetWriter | None = None
    room = 0
    try:
        for batch in batches:
            at = 0
            # An empty answer still is a file, with its columns.
            while at < batch.num_rows or not names:
                if writer is None or not room:
                    if writer is not None:
                        writer.close()
                    names.append(f"part-{len(names):05d}.parquet")
                    writer, room = pq.ParquetWriter(folder / names[-1], batch.schema, compression="zstd"), rows_per_file
                part = batch.slice(at, room)
                writer.write_batch(part)
                at, room = at + part.num_rows, room - part.num_rows
    finally:
        if writer is not None:
            writer.close()
    return names
