"""Does a job's chunks: computes rows from one snapshot of the records, writes them offline, then online."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from graph_features.drivers.batch import event_rows, slice_rows
from graph_features.edges import EdgeTable
from graph_features.errors import JobCancelledError, JobError, UnknownFeatureError
from graph_features.jobs.records import Chunk, ChunkKey, ChunkState
from graph_features.jobs.runner import JobContext
from graph_features.jobs.stores import Stores
from graph_features.schema import Cadence, ViewSchema

log = logging.getLogger(__name__)

BLOCKED_WAIT_S = 1.0


def chosen_views(schemas: Mapping[str, ViewSchema], names: Sequence[str] | None) -> list[ViewSchema]:
    """Return the named views, all by default; raise UnknownFeatureError."""
    for name in names or ():
        if name not in schemas:
            raise UnknownFeatureError(f"no feature view {name!r}; there are {', '.join(schemas)}")
    return [schema for name, schema in schemas.items() if names is None or name in names]


def run_chunks(context: JobContext, stores: Stores, schemas: Mapping[str, ViewSchema]) -> None:
    """Do every chunk of the job that is not done; raise JobError at the end when some failed.

    A failed chunk leaves its error in the ledger and the others go on. A chunk that an earlier try has written offline
    is computed again from the same records and written online only.
    """
    ledger = context.ledger.chunks
    ledger.reopen(context.job.id)
    planned = ledger.list(context.job.id)
    context.progress(*_progress(context))
    if all(chunk.state is ChunkState.DONE for chunk in planned):
        return
    edges = _load(stores, planned)
    context.check()
    for name in sorted({chunk.key.view for chunk in planned} & set(schemas)):
        stores.offline.create_view(schemas[name])
    work = _Work(stores=stores, schemas=schemas, edges=edges)
    for chunk in _claims(context):
        _try_chunk(context, chunk, work)
        context.progress(*_progress(context))
    failed = [chunk for chunk in ledger.list(context.job.id) if chunk.state is ChunkState.FAILED]
    if failed:
        first = f"{failed[0].key}: {failed[0].error}"
        raise JobError(f"{len(failed)} of {len(planned)} chunks failed, resume the job to retry them (first: {first})")


def _load(stores: Stores, planned: Sequence[Chunk]) -> EdgeTable:
    before_ms = max(chunk.key.end_ms for chunk in planned)
    max_seq = planned[0].key.source_seq  # one for all: a job is planned at once
    records = stores.records.read_all(before_ms=before_ms, max_seq=max_seq)
    return EdgeTable.from_arrow(records.transactions, records.statuses, records.labels, max_seq=max_seq)


def _claims(context: JobContext) -> Iterator[Chunk]:
    """Yield chunks as they become ours; wait for those whose work another runner has in hand."""
    ledger = context.ledger.chunks
    while True:
        context.check()
        chunk = ledger.claim(context.job.id, context.runner)
        if chunk is not None:
            yield chunk
            continue
        counts = ledger.counts(context.job.id)
        if not any(counts[state] for state in ChunkState if state not in (ChunkState.DONE, ChunkState.FAILED)):
            return
        context.stop.wait(BLOCKED_WAIT_S)


def _progress(context: JobContext) -> tuple[int, int]:
    counts = context.ledger.chunks.counts(context.job.id)
    return counts[ChunkState.DONE], sum(counts.values())


class _Work:
    """One chunk's inputs: computes its rows and writes them."""

    def __init__(self, *, stores: Stores, schemas: Mapping[str, ViewSchema], edges: EdgeTable) -> None:
        self.stores = stores
        self.schemas = schemas
        self.edges = edges

    def schema(self, key: ChunkKey) -> ViewSchema:
        schema = self.schemas.get(key.view)
        if schema is None or schema.code_hash != key.view_hash:
            found = schema.code_hash if schema else "no such view"
            raise JobError(
                f"view {key.view} was planned with code {key.view_hash}, there is {found}: start a new job for it"
            )
        return schema

    def tables(self, schema: ViewSchema, key: ChunkKey) -> Iterable[pa.Table]:
        settings = self.stores.feature_settings
        if schema.cadence is Cadence.SLICE:
            return [slice_rows(schema, self.edges, as_of_ms=key.start_ms, settings=settings)]
        accounts = None if key.partitions == 1 else accounts_of(self.edges, key.partition, key.partitions)
        return event_rows(
            schema, self.edges, from_ms=key.start_ms, to_ms=key.end_ms, settings=settings, accounts=accounts
        )


def _try_chunk(context: JobContext, chunk: Chunk, work: _Work) -> None:
    try:
        _do_chunk(context, chunk, work)
    except JobCancelledError:
        raise
    except Exception as error:  # recorded in the chunk's row, and raised as JobError once the others are done
        log.warning("chunk %s failed", chunk.key, exc_info=error)
        context.ledger.chunks.failed(chunk, f"{type(error).__name__}: {error}")


def _do_chunk(context: JobContext, chunk: Chunk, work: _Work) -> None:
    ledger, stores = context.ledger.chunks, work.stores
    schema = work.schema(chunk.key)
    newest: list[pa.Table] = []
    n_rows = 0
    for position, table in enumerate(work.tables(schema, chunk.key)):
        context.check()
        if chunk.offline_at is None:
            stores.offline.write(schema, table, part=f"{chunk.key.part()}-{position:05d}")
        n_rows += table.num_rows
        newest.append(newest_rows(schema, table))
    if chunk.offline_at is None:
        ledger.offline_committed(chunk, rows=n_rows)
    for table in newest:
        context.check()
        stores.online.write(schema, table)
    ledger.done(chunk)


def newest_rows(schema: ViewSchema, table: pa.Table) -> pa.Table:
    """Return each entity's last row of a table that is sorted by entity and time: all that the online store wants."""
    if schema.cadence is Cadence.SLICE or table.num_rows < 2:
        return table
    last = np.zeros(table.num_rows, np.bool_)
    last[-1] = True
    for key in schema.keys:
        values = table[key].combine_chunks().dictionary_encode()
        codes = (values.chunk(0) if isinstance(values, pa.ChunkedArray) else values).indices.to_numpy()
        last[:-1] |= codes[1:] != codes[:-1]
    return table.filter(pa.array(last))


def accounts_of(edges: EdgeTable, partition: int, partitions: int) -> list[str]:
    """Return the accounts of a partition: by a checksum of their id, so that new accounts move no old one."""
    return [account_id for account_id in edges.account_ids if zlib.crc32(account_id.encode()) % partitions == partition]
