"""Rows of a whole period: every event, the last state, or a slice, from an EdgeTable that holds everything.

Results come as an iterator of tables of at most CHUNK_ROWS rows and about CHUNK_BYTES, so that memory stays bounded
however long the history, and however much a row of a hub holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.catalog import catalog
from graph_features.compute import Entities, compute_rows
from graph_features.edge_files import load_edges, save_edges
from graph_features.edges import EdgeTable, Int64
from graph_features.events import LAST_WANTED, Coverage, events, last_rows, rows_between, rows_not_covered
from graph_features.executor import Executor
from graph_features.kernels.timeline import pair_index
from graph_features.late import coverage_of, late_records, stale_rows
from graph_features.late_records import Late
from graph_features.neighbours import NEIGHBOURS
from graph_features.schema import Cadence, EntityKey, ViewSchema
from graph_features.settings import FeatureSettings

CHUNK_ROWS = 100_000
CHUNK_BYTES = 64 << 20
INDEX_BYTES = 4 << 30
"""What a table's indexes may take when work on a view begins: those of 20 million payments take 9 GB together."""

STEP_ROWS = 5_000
"""Rows of views with lists are computed so many at a time, since nothing tells beforehand how much they will hold: the
longest, some 12 kB, are of accounts with payments in every hour of a week."""


def event_rows(
    view: ViewSchema,
    edges: EdgeTable,
    *,
    from_ms: int,
    to_ms: int,
    settings: FeatureSettings,
    accounts: Sequence[str] | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Iterator[pa.Table]:
    """Yield the snapshot row before `from_ms` and one row per renewing event in [from_ms, to_ms), by entity and time.

    `accounts` restricts the rows to these accounts, or to pairs whose sender is one of them.
    """
    groups = None if accounts is None else _groups_of_accounts(view, edges, edges.codes(list(accounts)))
    group, as_of_ms = rows_between(events(edges, view), from_ms=from_ms, to_ms=to_ms, groups=groups)
    yield from _tables(view, edges, group, as_of_ms, settings, chunk_rows)


def latest_rows(
    view: ViewSchema,
    edges: EdgeTable,
    keys: Sequence[EntityKey] | None,
    *,
    before_ms: int,
    settings: FeatureSettings,
    covered: Mapping[EntityKey, Coverage] | None = None,
    late: Late | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Iterator[pa.Table]:
    """Yield each entity's newest event row before `before_ms`; entities without an event have none. None is all.

    Keys in `covered` get every row instead that is not covered: those that later and late events made or changed,
    which may be none. In the neighbours view those are also rows of counterparties to whom something happened late,
    which `late` tells; None is to take it from the table.
    """
    group, as_of_ms = latest(view, edges, keys, before_ms=before_ms, covered=covered, late=late)
    yield from _tables(view, edges, group, as_of_ms, settings, chunk_rows)


def latest(
    view: ViewSchema,
    edges: EdgeTable,
    keys: Sequence[EntityKey] | None,
    *,
    before_ms: int,
    covered: Mapping[EntityKey, Coverage] | None = None,
    late: Late | None = None,
) -> tuple[Int64, Int64]:
    """Return (group, as_of_ms) of the rows that `latest_rows` computes, by entity and time."""
    index = events(edges, view)
    if keys is None:
        return last_rows(index, before_ms=before_ms)
    groups = groups_of_keys(view, edges, keys)
    if not covered:
        return last_rows(index, before_ms=before_ms, groups=np.unique(groups[groups >= 0]))
    bounds = [covered.get(key, LAST_WANTED) for key in keys]
    known = groups >= 0
    group, as_of_ms = rows_not_covered(
        index,
        before_ms=before_ms,
        groups=groups[known],
        as_of_ms=np.array([bound.as_of_ms for bound in bounds], np.int64)[known],
        seq=np.array([bound.seq for bound in bounds], np.int64)[known],
    )
    if view.name != NEIGHBOURS.name:
        return group, as_of_ms
    asked = {key: covered[key] for key in keys if key in covered}
    stale = stale_rows(edges, view, coverage_of(edges, asked), late_records(edges) if late is None else late)
    wanted = stale[1] <= before_ms
    rows = np.stack((np.append(group, stale[0][wanted]), np.append(as_of_ms, stale[1][wanted])))
    group, as_of_ms = np.unique(rows, axis=1) if wanted.any() else (group, as_of_ms)
    return group, as_of_ms


def slice_rows(view: ViewSchema, edges: EdgeTable, *, as_of_ms: int, settings: FeatureSettings) -> pa.Table:
    """Return the rows of a slice view at `as_of_ms`: one per account with a payment before it, in order of ids."""
    edges.indexes.trim(INDEX_BYTES)
    n_seen = int(np.searchsorted(edges.ts_ms, as_of_ms))
    seen = np.zeros(edges.n_accounts, np.bool_)
    seen[edges.sender[:n_seen]] = True
    seen[edges.receiver[:n_seen]] = True
    accounts = np.flatnonzero(seen)
    entities = Entities.of_groups(edges, view.entity, accounts)
    as_of = np.full(len(accounts), as_of_ms, np.int64)
    return compute_rows(view, edges, entities=entities, as_of_ms=as_of, settings=settings)


def rows_at(
    views: Sequence[ViewSchema], edges: EdgeTable, *, as_of_ms: int, settings: FeatureSettings, threads: int = 1
) -> Iterator[tuple[str, pa.Table]]:
    """Yield (view name, table) until all rows of `views` at one instant are there: newest event rows, and the slices.

    Tables of one event view come in the order of its entities with one thread, in any order with more. Threads share
    the table's indexes; the kernels run beside each other, for they hold no interpreter lock.
    """

    def slice_table(view: ViewSchema) -> pa.Table:
        return slice_rows(view, edges, as_of_ms=as_of_ms, settings=settings)

    # Slices first: they take longest, and what they have in common is built by whoever comes first.
    slices = [view for view in views if view.cadence is Cadence.SLICE]
    work: Iterator[tuple[str, Callable[[], pa.Table]]] = chain(
        ((view.name, partial(slice_table, view)) for view in slices),
        (
            (view.name, part)
            for view in views
            if view.cadence is Cadence.EVENT
            for part in _parts(view, edges, *latest(view, edges, None, before_ms=as_of_ms), settings, CHUNK_ROWS)
        ),
    )
    yield from _in_threads(work, threads)


def _in_threads(work: Iterator[tuple[str, Callable[[], pa.Table]]], threads: int) -> Iterator[tuple[str, pa.Table]]:
    """Yield what the work gives as it is done, a little ahead of who asks for it."""
    if threads == 1:
        for name, compute in work:
            yield name, compute()
        return
    with ThreadPoolExecutor(threads) as pool:
        names: dict[Future[pa.Table], str] = {}
        try:
            for name, compute in work:
                names[pool.submit(compute)] = name
                if len(names) > threads:
                    yield from _done(names)
            while names:
                yield from _done(names)
        finally:
            for future in names:
                future.cancel()


def _done(names: dict[Future[pa.Table], str]) -> Iterator[tuple[str, pa.Table]]:
    for future in wait(names, return_when=FIRST_COMPLETED).done:
        yield names.pop(future), future.result()


def _groups_of_accounts(view: ViewSchema, edges: EdgeTable, codes: npt.NDArray[np.integer]) -> Int64:
    codes = np.unique(codes[codes >= 0])
    if view.entity != "pair":
        return codes.astype(np.int64)
    return np.flatnonzero(np.isin(pair_index(edges).key // max(edges.n_accounts, 1), codes))


def groups_of_keys(view: ViewSchema, edges: EdgeTable, keys: Sequence[EntityKey]) -> Int64:
    """Return account codes or pair codes of `keys`, -1 where there is no payment."""
    if not keys:
        return np.empty(0, np.int64)
    codes = Entities.of_keys(edges, keys).codes
    return pair_index(edges).codes(*codes) if view.entity == "pair" else codes[0].astype(np.int64)


def _tables(
    view: ViewSchema, edges: EdgeTable, group: Int64, as_of_ms: Int64, settings: FeatureSettings, chunk_rows: int
) -> Iterator[pa.Table]:
    parts = (part() for part in _parts(view, edges, group, as_of_ms, settings, chunk_rows))
    yield from gathered(parts, most_rows=chunk_rows, most_bytes=CHUNK_BYTES)


def _parts(
    view: ViewSchema, edges: EdgeTable, group: Int64, as_of_ms: Int64, settings: FeatureSettings, chunk_rows: int
) -> Iterator[Callable[[], pa.Table]]:
    def table(part: slice) -> pa.Table:
        entities = Entities.of_groups(edges, view.entity, group[part])
        return compute_rows(view, edges, entities=entities, as_of_ms=as_of_ms[part], settings=settings)

    edges.indexes.trim(INDEX_BYTES)
    has_lists = any(feature.dtype.is_list for feature in view.features)
    step = min(chunk_rows, STEP_ROWS) if has_lists else chunk_rows
    for start in range(0, len(group), step):
        yield partial(table, slice(start, start + step))


def gathered(tables: Iterable[pa.Table], *, most_rows: int, most_bytes: int) -> Iterator[pa.Table]:
    """Put tables together up to `most_rows` rows, and to the first with which they hold `most_bytes` or more."""
    held: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        if held and (rows + table.num_rows > most_rows or size >= most_bytes):
            yield pa.concat_tables(held)
            held, rows, size = [], 0, 0
        held.append(table)
        rows, size = rows + table.num_rows, size + table.nbytes
    if held:
        yield pa.concat_tables(held)


@dataclass(frozen=True, kw_only=True)
class EventPart:
    """A part of a view's event rows for any process: those of groups [first, end) of the table in `edges_folder`."""

    edges_folder: Path
    view: str
    first: int
    end: int
    from_ms: int
    to_ms: int
    settings: FeatureSettings


def event_parts(
    view: ViewSchema,
    edges: EdgeTable,
    edges_folder: Path,
    *,
    from_ms: int,
    to_ms: int,
    settings: FeatureSettings,
    part_rows: int = CHUNK_ROWS,
) -> list[EventPart]:
    """Split a view's event rows into ranges of accounts (or pairs) of about `part_rows` rows each.

    `edges_folder` holds the same table, written by `edge_files.save_edges`. Hand the parts to an Executor together with
    a function that computes a part with `part_rows` and stores it through connections of its own.
    """
    group, _ = rows_between(events(edges, view), from_ms=from_ms, to_ms=to_ms)
    if len(group) == 0:
        return []
    cuts = np.unique(np.append(group[::part_rows], group[-1] + 1))
    return [
        EventPart(
            edges_folder=edges_folder,
            view=view.name,
            first=int(first),
            end=int(end),
            from_ms=from_ms,
            to_ms=to_ms,
            settings=settings,
        )
        for first, end in pairwise(cuts)
    ]


def part_rows(part: EventPart, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
    """Yield the rows of a part; the mapped table and its indexes stay in the process for the next part."""
    view, edges = catalog().schema(part.view), _mapped(part.edges_folder)
    groups = np.arange(part.first, part.end)
    group, as_of_ms = rows_between(events(edges, view), from_ms=part.from_ms, to_ms=part.to_ms, groups=groups)
    yield from _tables(view, edges, group, as_of_ms, part.settings, chunk_rows)


def event_rows_by(
    executor: Executor,
    view: ViewSchema,
    edges: EdgeTable,
    *,
    from_ms: int,
    to_ms: int,
    settings: FeatureSettings,
    cache: Path,
    part_rows: int = CHUNK_ROWS,
) -> Iterator[pa.Table]:
    """Yield what `event_rows` does, computed in parts on an executor; raise the error of a part that failed.

    Tables pass through a folder under `cache` that lasts as long as the iterator; none of it is pickled.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache, prefix="event-rows-") as folder:
        edges_folder = Path(folder) / "edges"
        save_edges(edges, edges_folder)
        parts = event_parts(
            view, edges, edges_folder, from_ms=from_ms, to_ms=to_ms, settings=settings, part_rows=part_rows
        )
        for result in executor.map(_write_part, parts):
            path = result.get()
            with pa.memory_map(str(path)) as source:
                reader = pa.ipc.open_file(source)
                for batch in range(reader.num_record_batches):
                    yield pa.Table.from_batches([reader.get_batch(batch)])
            path.unlink()


def _write_part(part: EventPart) -> Path:
    path = part.edges_folder.with_name(f"{part.view}-{part.first}-{part.end}.arrow")
    schema = catalog().schema(part.view).arrow_schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for table in part_rows(part):
            writer.write_table(table.combine_chunks())
    return path


@lru_cache(maxsize=1)
def _mapped(folder: Path) -> EdgeTable:
    return load_edges(folder)
