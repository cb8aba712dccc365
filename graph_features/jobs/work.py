"""Does a job's chunks: computes rows from one snapshot of the records, writes them offline, then online."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from uuid import UUID

import pyarrow as pa

from graph_features.drivers.batch import event_rows, slice_rows
from graph_features.edges import EdgeTable
from graph_features.errors import JobCancelledError, JobError, StoreUnavailableError, UnknownFeatureError
from graph_features.jobs.patience import insist
from graph_features.jobs.records import Chunk, ChunkKey, ChunkState
from graph_features.jobs.runner import JobContext
from graph_features.jobs.stores import Stores
from graph_features.partitions import HasCache, PartitionedEdges, own_accounts
from graph_features.refresh import newest_rows
from graph_features.schema import Cadence, ViewSchema
from graph_features.settings import FeatureSettings
from graph_features.stores.base import Written

log = logging.getLogger(__name__)

BLOCKED_WAIT_S = 0.5
OUTAGES_IN_A_ROW = 3
"""After so many chunks of one worker that a store refused, although it answers, trying more of them is of no use."""


def chosen_views(schemas: Mapping[str, ViewSchema], names: Sequence[str] | None) -> list[ViewSchema]:
    """Return the named views, all by default; raise UnknownFeatureError."""
    for name in names or ():
        if name not in schemas:
            raise UnknownFeatureError(f"no feature view {name!r}; there are {', '.join(schemas)}")
    return [schema for name, schema in schemas.items() if names is None or name in names]


def view_hash(schema: ViewSchema, settings: FeatureSettings) -> str:
    """Return what a view's rows are computed by: its definition, its code and the constants that features depend on."""
    return hashlib.sha256(f"{schema.code_hash};{settings.model_dump_json()}".encode()).hexdigest()[:16]


@dataclass(kw_only=True)
class Work:
    """What chunks are computed from and written to; reading the records takes as long as many chunks, so once.

    Chunks of a partition are computed from that partition's files, where the stores have a place for them.
    """

    stores: Stores
    schemas: Mapping[str, ViewSchema]
    job_id: UUID
    before_ms: int
    max_seq: int
    _partition: tuple[int, int, EdgeTable] | None = None

    @classmethod
    def load(cls, stores: Stores, schemas: Mapping[str, ViewSchema], planned: Sequence[Chunk]) -> Work:
        """Read the records that the planned chunks of one job need; they share one ingest sequence."""
        work = cls(
            stores=stores,
            schemas=schemas,
            job_id=planned[0].job_id,
            before_ms=max(chunk.key.end_ms for chunk in planned),
            max_seq=planned[0].key.source_seq,
        )
        if not any(work.in_files(chunk.key) for chunk in planned):
            _ = work.edges  # now: who does not get the records had better not claim anything
        return work

    @cached_property
    def edges(self) -> EdgeTable:
        """Everything. Read when first asked for: a worker that does partitions alone never holds it."""
        records = self.stores.records.read_all(before_ms=self.before_ms, max_seq=self.max_seq)
        return EdgeTable.from_arrow(records.transactions, records.statuses, records.labels, max_seq=self.max_seq)

    def in_files(self, key: ChunkKey) -> bool:
        """Whether a chunk is computed from the files of its partition."""
        return key.partitions > 1 and isinstance(self.stores, HasCache)

    def files(self, partitions: int) -> PartitionedEdges:
        """Return where the job's files are on this machine, or will be."""
        assert isinstance(self.stores, HasCache)
        folder = self.stores.cache_folder / "partitions" / f"{self.job_id}-{partitions}"
        return PartitionedEdges(folder=folder, partitions=partitions)

    def edges_of(self, key: ChunkKey) -> EdgeTable:
        """Return the table that a chunk is computed from; that of one partition is kept for the next chunk."""
        if not self.in_files(key):
            return self.edges
        wanted = (key.partition, key.partitions)
        if self._partition is None or self._partition[:2] != wanted:
            self._partition = None  # let go of the one before the next is there
            files = self.files(key.partitions)
            files.prepare(self.stores.records, before_ms=self.before_ms, max_seq=self.max_seq)
            self._partition = (*wanted, files.edges(key.partition))
        return self._partition[2]

    def schema(self, key: ChunkKey) -> ViewSchema:
        schema = self.schemas.get(key.view)
        found = None if schema is None else view_hash(schema, self.stores.feature_settings)
        if schema is None or found != key.view_hash:
            raise JobError(
                f"view {key.view} was planned with code {key.view_hash}, there is {found or 'no such view'}: "
                "start a new job for it"
            )
        return schema

    def tables(self, schema: ViewSchema, key: ChunkKey) -> Iterator[pa.Table]:
        """Yield the chunk's rows; nothing is computed before the first is asked for."""
        settings = self.stores.feature_settings
        if schema.cadence is Cadence.SLICE:
            yield slice_rows(schema, self.edges, as_of_ms=key.start_ms, settings=settings)
            return
        edges = self.edges_of(key)
        accounts = None if key.partitions == 1 else accounts_of(edges, key.partition, key.partitions)
        yield from event_rows(
            schema, edges, from_ms=key.start_ms, to_ms=key.end_ms, settings=settings, accounts=accounts
        )

    def await_stores(self, context: JobContext) -> None:
        """Return when every store that chunks are written to answers; raise StoreUnavailableError after long."""

        def ping() -> None:
            self.stores.offline.ping()
            self.stores.online.ping()
            context.ledger.ping()

        insist(ping, patience_s=context.settings.patience_s, stop=context.stop)


def do_chunks(context: JobContext, work: Work, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Do chunks as they come and yield each when it is done or failed; a failed one leaves its error in the ledger.

    Raises StoreUnavailableError when a store stays away, or refuses one chunk after another.
    """
    outages = 0
    for chunk in chunks:
        outage = _try_chunk(context, chunk, work)
        yield chunk
        if outage is None:
            outages = 0
            continue
        outages += 1
        work.await_stores(context)
        if outages == OUTAGES_IN_A_ROW:
            raise StoreUnavailableError(f"stopped after {outages} chunks in a row that could not be stored: {outage}")


def _try_chunk(context: JobContext, chunk: Chunk, work: Work) -> StoreUnavailableError | None:
    """Do a chunk or record why it failed; return the error if a store was away."""
    try:
        _do_chunk(context, chunk, work)
    except JobCancelledError:
        raise
    except StoreUnavailableError as error:
        log.warning("chunk %s failed: %s", chunk.key, error)
        _fail(context, chunk, str(error), outage=True)
        return error
    except Exception as error:  # recorded in the chunk's row, and raised as JobError once the others are done
        log.warning("chunk %s failed", chunk.key, exc_info=error)
        _fail(context, chunk, f"{type(error).__name__}: {error}")
    return None


def _fail(context: JobContext, chunk: Chunk, error: str, *, outage: bool = False) -> None:
    record = context.ledger.chunks.failed
    try:
        insist(lambda: record(chunk, error, outage=outage), patience_s=context.settings.patience_s, stop=context.stop)
    except JobError as gone:
        log.warning("%s", gone)  # another worker has it: the failure is not the chunk's any more


@dataclass(kw_only=True)
class _Computed:
    """A chunk's tables on their way to the offline store: counts the time they take, keeps what goes online."""

    schema: ViewSchema
    context: JobContext
    source: Iterable[pa.Table]
    seconds: float = 0.0
    newest: list[pa.Table] = field(default_factory=list)

    def __iter__(self) -> Iterator[pa.Table]:
        source = iter(self.source)
        while True:
            began = time.perf_counter()
            table = next(source, None)
            self.seconds += time.perf_counter() - began
            if table is None:
                return
            self.context.check()
            # A slice has one row per account; of events the online store wants each entity's last.
            events = self.schema.cadence is Cadence.EVENT and table.num_rows > 0
            self.newest.append(newest_rows(self.schema, table) if events else table)
            yield table


def _do_chunk(context: JobContext, chunk: Chunk, work: Work) -> None:
    ledger, stores = context.ledger.chunks, work.stores
    schema = work.schema(chunk.key)
    # Asked before the write: a store that dies after its acknowledgement has another epoch at the end of the job.
    epoch = stores.online.epoch()
    began = time.perf_counter()
    computed = _Computed(schema=schema, context=context, source=work.tables(schema, chunk.key))
    if chunk.offline_at is None:

        def record(written: Written) -> None:
            spent_s = time.perf_counter() - began
            ledger.offline_committed(chunk, written, compute_s=computed.seconds, offline_s=spent_s - computed.seconds)

        stores.offline.write_all(schema, computed, part=chunk.key.part(), on_written=record)
    elif not ledger.is_superseded(chunk, epoch=epoch):
        for _ in computed:  # from the same records the same rows
            pass
    offline_done = time.perf_counter()
    if not ledger.is_superseded(chunk, epoch=epoch):
        for table in computed.newest:
            context.check()
            stores.online.write(schema, table)
    ledger.done(chunk, online_s=time.perf_counter() - offline_done, epoch=epoch)


def accounts_of(edges: EdgeTable, partition: int, partitions: int) -> list[str]:
    """Return the accounts of a partition, in order."""
    return edges.account_ids[own_accounts(edges, partition, partitions)].tolist()  # type: ignore[no-any-return]


def is_over(counts: Mapping[ChunkState, int]) -> bool:
    """Whether no chunk waits or is in hand."""
    return not any(counts[state] for state in ChunkState if state not in (ChunkState.DONE, ChunkState.FAILED))
