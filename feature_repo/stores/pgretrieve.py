"""A historical retrieval: entity rows in chunks, each joined with its views over several connections at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.offline_stores import offline_utils
from feast.infra.utils.postgres.connection_utils import _get_conn
from psycopg import sql

from feature_repo.stores.asof import UTC_MICROS, AsOfView, entity_rows
from feature_repo.stores.pgjoin import Request, ViewJoins
from feature_repo.stores.pgread import Cursor, prepared, stream
from graph_features.stores.pgbinary import BinaryColumns

FEW_ROWS = 5_000
"""For so many entity rows one connection is faster than the making of more."""

_SETTINGS = "SET LOCAL timezone = 'UTC'; SET LOCAL jit = off"
_ONE_STATE = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"


@contextmanager
def transaction(offline_store: Any, snapshot: str | None = None, *, one_state: bool = False) -> Iterator[Cursor]:
    """One connection and transaction, times in UTC; temporary tables end with it.

    All its statements see one state of the database: their own with `one_state`, another's with its `snapshot`.
    """
    with _get_conn(offline_store) as connection, connection.cursor() as cursor:
        if one_state or snapshot:
            cursor.execute(_ONE_STATE)
        if snapshot:
            cursor.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        cursor.execute(_SETTINGS)
        yield cursor


@dataclass(frozen=True, kw_only=True)
class EntityRows:
    """What to join to: a table, or a query with its prepared form; the column with their time, first and last time."""

    columns: tuple[str, ...]
    timestamp: str
    first: datetime | None
    last: datetime | None
    table: pa.Table | None = None
    query: tuple[BinaryColumns, sql.Composable] | None = None

    def chunks(self, cursor: Cursor, most_rows: int) -> Iterator[pa.Table]:
        """Yield all rows in their order, at least one chunk, their times in UTC."""
        if self.table is not None:
            for start in range(0, max(self.table.num_rows, 1), most_rows):
                yield self.table.slice(start, most_rows)
            return
        assert self.query is not None
        columns, query = self.query
        held, rows = [columns.schema.empty_table()], 0
        for batch in stream(cursor, columns, query):
            held.append(pa.Table.from_batches([batch]))
            rows += batch.num_rows
            if rows >= most_rows:
                yield self._in_utc(pa.concat_tables(held))
                held, rows = held[:1], 0
        if rows or len(held) == 1:
            yield self._in_utc(pa.concat_tables(held))

    def _in_utc(self, rows: pa.Table) -> pa.Table:
        place = rows.column_names.index(self.timestamp)
        moments = rows.column(place)
        if pa.types.is_timestamp(moments.type) and moments.type.tz is None:
            moments = pc.assume_timezone(moments, "UTC")
        return rows.set_column(place, self.timestamp, moments.cast(UTC_MICROS))


def described(offline_store: Any, entity_df: pd.DataFrame | str) -> EntityRows:
    """Look at the entity rows; a query is run once for the range of its times."""
    if isinstance(entity_df, pd.DataFrame):
        table, timestamp = entity_rows(entity_df)
        ends = pc.min_max(table[timestamp]).as_py()
        return EntityRows(
            columns=tuple(entity_df.columns), timestamp=timestamp, first=ends["min"], last=ends["max"], table=table
        )
    query = sql.SQL(entity_df)
    with transaction(offline_store) as cursor:
        columns, readable = prepared(cursor, query)
        empty = columns.schema.empty_table().to_pandas()
        timestamp = offline_utils.infer_event_timestamp_from_entity_df(dict(empty.dtypes))
        span = sql.SQL("SELECT min({0}), max({0}) FROM ({1}) AS entities").format(sql.Identifier(timestamp), query)
        first, last = cursor.execute(span).fetchone() or (None, None)
    return EntityRows(
        columns=columns.names,
        timestamp=timestamp,
        first=_in_utc(first),
        last=_in_utc(last),
        query=(columns, readable),
    )


def _in_utc(moment: Any) -> datetime | None:
    """A time, a date or nothing as a time with a zone."""
    if moment is None:
        return None
    at = moment if isinstance(moment, datetime) else datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Entity rows and views of one `get_historical_features`."""

    offline_store: Any
    entities: EntityRows
    views: Sequence[AsOfView]
    only_known: bool
    connections: int
    rows_per_chunk: int

    def chunks(self) -> Iterator[pa.Table]:
        """Yield the answer in the entity rows' order; all of it from one state of the database."""
        with ExitStack() as stack:
            lead = stack.enter_context(transaction(self.offline_store, one_state=True))
            ((snapshot,),) = lead.execute("SELECT pg_export_snapshot()").fetchall()
            chunks = self.entities.chunks(lead, self.rows_per_chunk)
            first, second = next(chunks), next(chunks, None)
            several = self._connections(first.num_rows, whole=second is None)
            # While it reads entity rows from a query, the first connection cannot join.
            cursors = [lead] if second is None or self.entities.table is not None else []
            while len(cursors) < several:
                cursors.append(stack.enter_context(transaction(self.offline_store, snapshot)))
            parts = self._shared_out(cursors, whole=second is None)
            pool = stack.enter_context(ThreadPoolExecutor(len(parts)))
            yield self._joined(pool, parts, first)
            while second is not None:
                yield self._joined(pool, parts, second)
                second = next(chunks, None)

    def _connections(self, rows: int, *, whole: bool) -> int:
        return 1 if whole and rows <= FEW_ROWS else max(1, min(self.connections, len(self.views)))

    def _shared_out(self, cursors: Sequence[Cursor], *, whole: bool) -> list[ViewJoins]:
        """Share the views among connections, those of the same keys together."""
        request = Request(
            timestamp=self.entities.timestamp,
            first=self.entities.first,
            last=self.entities.last,
            only_known=self.only_known,
        )
        views, parts = sorted(self.views, key=lambda view: sorted(key for _, key in view.keys)), len(cursors)
        return [
            ViewJoins(
                cursor=cursor,
                views=views[len(views) * part // parts : len(views) * (part + 1) // parts],
                request=request,
                whole=whole,
            )
            for part, cursor in enumerate(cursors)
        ]

    def _joined(self, pool: ThreadPoolExecutor, parts: list[ViewJoins], entities: pa.Table) -> pa.Table:
        found: dict[str, pa.ChunkedArray] = {}
        for answer in pool.map(lambda part: part.join(entities), parts):
            found.update(answer)
        for view in self.views:
            for _, name in view.features:
                entities = entities.append_column(name, found[name])
        return entities
