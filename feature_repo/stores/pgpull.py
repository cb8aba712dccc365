"""Latest and all rows of a table or query in a period, in columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.file_source import FileSource
from psycopg import sql

from feature_repo.stores.pgread import prepared, stream
from feature_repo.stores.pgretrieve import transaction

ROWS_PER_CHUNK = 100_000


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Columns by their names in the source; `created` breaks ties of `timestamp`; either end of the period is open
    when None."""

    source: Any
    keys: Sequence[str]
    features: Sequence[str]
    timestamp: str
    created: str | None
    start: datetime | None
    end: datetime | None
    latest: bool

    @property
    def stamps(self) -> list[str]:
        return [name for name in (self.timestamp, self.created) if name]

    def query(self) -> sql.Composed:
        """The query; without feature names it answers every column of the source."""
        distinct: sql.Composable = sql.SQL("")
        order: sql.Composable = sql.SQL("")
        if self.latest:
            entity = [*map(_column, self.keys)]
            # Of nulls the first would be the newest.
            newest = [sql.SQL("{} DESC NULLS LAST").format(_column(name)) for name in self.stamps]
            order = sql.SQL("ORDER BY {}").format(sql.SQL(", ").join([*entity, *newest]))
            if entity:
                distinct = sql.SQL("DISTINCT ON ({})").format(sql.SQL(", ").join(entity))
            else:
                order = sql.SQL("{} LIMIT 1").format(order)
        return sql.SQL("SELECT {} {} FROM {} v WHERE {} {}").format(
            distinct,
            self._shown(),
            sql.SQL(self.source.get_table_query_string()),
            sql.SQL(" AND ").join(self._period()),
            order,
        )

    def chunks(self, offline_store: Any) -> Iterator[pa.Table]:
        """Run the query; yield its rows in chunks, at least one."""
        with transaction(offline_store) as cursor:
            columns, query = prepared(cursor, self.query())
            held, rows = [columns.schema.empty_table()], 0
            for batch in stream(cursor, columns, query):
                held.append(pa.Table.from_batches([batch]))
                rows += batch.num_rows
                if rows >= ROWS_PER_CHUNK:
                    yield pa.concat_tables(held)
                    held, rows = held[:1], 0
            yield pa.concat_tables(held)

    def _shown(self) -> sql.Composable:
        shown: sql.Composable = sql.SQL("v.*")
        if self.features:
            names = dict.fromkeys([*self.keys, *self.features, *self.stamps])
            shown = sql.SQL(", ").join(map(_column, names))
        if self.keys:
            return shown
        dummy = sql.SQL("{} AS {}").format(sql.Literal(DUMMY_ENTITY_VAL), sql.Identifier(DUMMY_ENTITY_ID))
        return sql.SQL("{}, {}").format(shown, dummy) if self.latest else shown

    def _period(self) -> list[sql.Composable]:
        ends = zip((">=", "<="), (self.start, self.end), strict=True)
        return [
            sql.SQL("true"),
            *(
                sql.SQL("{} {} {}::timestamptz").format(_column(self.timestamp), sql.SQL(sign), sql.Literal(_utc(at)))
                for sign, at in ends
                if at is not None
            ),
        ]


def file_chunks(source: FileSource, pull: Pull, base: Path) -> Iterator[pa.Table]:
    """Rows of a saved dataset of Parquet files in the period, in chunks, at least one."""
    files = pads.dataset(base / source.path, format="parquet")
    where: pads.Expression = pads.scalar(True)
    stamp = files.schema.field(pull.timestamp).type
    for at, before in ((pull.start, False), (pull.end, True)):
        if at is not None:
            limit = pa.scalar(_utc(at), pa.timestamp("us", "UTC")).cast(stamp)
            where &= pads.field(pull.timestamp) <= limit if before else pads.field(pull.timestamp) >= limit
    names = list(dict.fromkeys([*pull.keys, *pull.features, *pull.stamps])) if pull.features else None
    yield pa.schema([files.schema.field(name) for name in names or files.schema.names]).empty_table()
    for batch in files.to_batches(columns=names, filter=where):
        yield pa.Table.from_batches([batch])


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _column(name: str) -> sql.Composed:
    return sql.SQL("v.{}").format(sql.Identifier(name))
