"""The as-of join in PostgreSQL: entity rows in, one index probe per row and view, columns out.

One way for any number of entity rows: merging them with the view's rows by window functions takes the server three
times as long, even for 500,000 entity rows over a million.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from feature_repo.stores.asof import AsOfView
from feature_repo.stores.pgread import Cursor, cast_column, casts_of, stream
from feature_repo.stores.pgwrite import copy_rows, create_table, storable
from graph_features.stores.pgbinary import BinaryColumns

ROW, MOMENT = "__entity_row", "__entity_moment"
CHEAP_PROBE = 200.0
"""In the planner's units: an index probe, or a look through a small table. A source that costs more is copied."""

_INT4 = 23
_NAIVE = (1082, 1114)
_KEY_CASTS = {1042: "::bpchar", 2950: "::uuid"}
"""For key columns that PostgreSQL would not look up in their index by text."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What holds for all entity rows of a retrieval. `last` is None where there are no rows at all."""

    timestamp: str
    first: datetime | None
    last: datetime | None
    only_known: bool
    """Leave out rows that were created after the entity row's time."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where a view's rows are read from, the type numbers of its columns, and those that are never null."""

    view: AsOfView
    relation: sql.Composable
    oids: Mapping[str, int]
    never_null: frozenset[str]


@dataclass(kw_only=True)
class ViewJoins:
    """The joins of some views over one connection, whose transaction holds the temporary tables."""

    cursor: Cursor
    views: Sequence[AsOfView]
    request: Request
    whole: bool
    """Whether the first chunk of entity rows is all of them, so that a copy of a source needs no others."""
    _sources: dict[str, _Source] = field(default_factory=dict, init=False)
    _tables: itertools.count[int] = field(default_factory=itertools.count, init=False)

    def join(self, entities: pa.Table) -> dict[str, pa.ChunkedArray]:
        """Return the views' features by name for every entity row, in their order, null where there is no row."""
        answer: dict[str, pa.ChunkedArray] = {}
        by_keys = sorted(self.views, key=_entity_columns)
        for keys, views in itertools.groupby(by_keys, key=_entity_columns):
            uploaded, order = self._upload(entities, keys)
            for view in views:
                answer.update(self._join_view(view, uploaded, order))
            self.cursor.execute(sql.SQL("DROP TABLE {}").format(uploaded))
        return answer

    def _upload(self, entities: pa.Table, keys: tuple[str, ...]) -> tuple[sql.Identifier, Rows]:
        """Make a temporary table of keys and times, in the order of the keys; return it and the rows' places."""
        order = _sorted_places(entities, [*keys, self.request.timestamp])
        # Never without a column: a view may have no keys, and a table of no columns forgets how many rows it has.
        rows = entities.select([*keys, self.request.timestamp]).rename_columns([*keys, MOMENT])
        rows = storable(_keys(rows))
        rows = rows.take(pa.array(order)).append_column(ROW, pa.array(np.arange(len(order), dtype=np.int32)))
        name = sql.Identifier("pg_temp", f"entity_rows_{next(self._tables)}")
        create_table(self.cursor, name, rows.schema, temporary=True)
        copy_rows(self.cursor, name, rows)
        self.cursor.execute(sql.SQL("ANALYZE {}").format(name))
        return name, order

    def _join_view(self, view: AsOfView, entities: sql.Identifier, order: Rows) -> dict[str, pa.ChunkedArray]:
        source = self._sources.get(view.name)
        if source is None:
            source = self._sources[view.name] = self._source(view, entities)
        columns, query = self._query(source, entities)
        batches = list(stream(self.cursor, columns, query))
        joined = pa.Table.from_batches(batches, columns.schema)
        place = np.empty(len(order), np.int64)
        place[order[joined[ROW].to_numpy()]] = np.arange(len(order))
        features = joined.drop_columns([ROW])
        if len(order) and not (place == np.arange(len(order))).all():
            features = features.take(pa.array(place))
        return {name: features[f"f{i}"] for i, (_, name) in enumerate(view.features)}

    def _query(self, source: _Source, entities: sql.Identifier) -> tuple[BinaryColumns, sql.Composable]:
        """One row per entity row: its number and the features of the view's newest row for it."""
        view, oids = source.view, source.oids
        casts = casts_of(self.cursor, [oids[column] for column, _ in view.features])
        shown, types = [], [_INT4]
        for i, (column, _) in enumerate(view.features):
            cast = casts.get(oids[column])
            value = cast_column(sql.SQL("v.{}").format(sql.Identifier(column)), cast)
            shown.append(sql.SQL("{} AS {}").format(value, sql.Identifier(f"f{i}")))
            types.append(oids[column] if cast is None else cast[1])
        order = [sql.SQL("v.{} DESC").format(sql.Identifier(view.timestamp))]
        if view.created:
            # Of nulls the first would be the newest; but where there are none, only this order is the index's.
            last = "" if view.created in source.never_null else " NULLS LAST"
            order.append(sql.SQL("v.{} DESC{}").format(sql.Identifier(view.created), sql.SQL(last)))
        query = sql.SQL(
            "SELECT e.{row}, joined.* FROM {entities} e LEFT JOIN LATERAL "
            "(SELECT {shown} FROM {relation} v WHERE {where} ORDER BY {order} LIMIT 1) joined ON true"
        ).format(
            row=sql.Identifier(ROW),
            entities=entities,
            shown=sql.SQL(", ").join(shown),
            relation=source.relation,
            where=sql.SQL(" AND ").join(self._conditions(source)),
            order=sql.SQL(", ").join(order),
        )
        return BinaryColumns(names=(ROW, *(f"f{i}" for i in range(len(shown)))), oids=tuple(types)), query

    def _conditions(self, source: _Source) -> list[sql.Composable]:
        view, happened = source.view, sql.SQL("v.{}").format(sql.Identifier(source.view.timestamp))
        moment = _comparable(source.oids[view.timestamp])
        conditions: list[sql.Composable] = []
        for column, key in view.keys:
            cast = sql.SQL(_KEY_CASTS.get(source.oids[column], ""))
            conditions.append(sql.SQL("v.{} = e.{}{}").format(sql.Identifier(column), sql.Identifier(key), cast))
        conditions.append(sql.SQL("{} <= {}").format(happened, moment))
        if view.ttl_s:
            conditions.append(sql.SQL("{} >= {} - make_interval(secs => {})").format(happened, moment, view.ttl_s))
        if view.created and self.request.only_known:
            limit = _comparable(source.oids[view.created])
            conditions.append(sql.SQL("v.{} <= {}").format(sql.Identifier(view.created), limit))
        return conditions

    def _source(self, view: AsOfView, entities: sql.Identifier) -> _Source:
        """Look at the source; copy what is needed of it where no index leads to the newest row of an entity."""
        source = self._described(view, sql.SQL(view.source.get_table_query_string()))
        _, query = self._query(source, entities)
        plan = _plan(self.cursor, query)
        probe = max((node["Total Cost"] for node in _nodes(plan) if node["Node Type"] == "Limit"), default=0.0)
        needed = self._needed(source, entities)
        if probe <= CHEAP_PROBE or plan["Total Cost"] <= 2 * _plan(self.cursor, needed)["Total Cost"]:
            return source
        name = sql.Identifier("pg_temp", f"needed_rows_{next(self._tables)}")
        self.cursor.execute(sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS {}").format(name, needed))
        ordered = [*(sql.Identifier(column) for column, _ in view.keys)]
        newest: list[sql.Composable] = [sql.SQL("{} DESC").format(sql.Identifier(view.timestamp))]
        if view.created:
            newest.append(sql.SQL("{} DESC NULLS LAST").format(sql.Identifier(view.created)))
        self.cursor.execute(sql.SQL("CREATE INDEX ON {} ({})").format(name, sql.SQL(", ").join([*ordered, *newest])))
        self.cursor.execute(sql.SQL("ANALYZE {}").format(name))
        return self._described(view, name)

    def _needed(self, source: _Source, entities: sql.Identifier) -> sql.Composable:
        """The source's rows that some entity row may be joined with."""
        view = source.view
        happened = sql.SQL("v.{}").format(sql.Identifier(view.timestamp))
        conditions: list[sql.Composable] = [sql.SQL("true")]
        if self.request.first is not None and self.request.last is not None:
            first, last = (_literal(at, source.oids[view.timestamp]) for at in (self.request.first, self.request.last))
            conditions.append(sql.SQL("{} <= {}").format(happened, last))
            if view.ttl_s:
                conditions.append(sql.SQL("{} >= {} - make_interval(secs => {})").format(happened, first, view.ttl_s))
        if self.whole and view.keys:
            same = self._conditions(source)[: len(view.keys)]
            conditions.append(
                sql.SQL("EXISTS (SELECT FROM {} e WHERE {})").format(entities, sql.SQL(" AND ").join(same))
            )
        columns = sql.SQL(", ").join(sql.SQL("v.{}").format(sql.Identifier(name)) for name in view.columns)
        return sql.SQL("SELECT {} FROM {} v WHERE {}").format(
            columns, source.relation, sql.SQL(" AND ").join(conditions)
        )

    def _described(self, view: AsOfView, relation: sql.Composable) -> _Source:
        columns = sql.SQL(", ").join(sql.SQL("v.{}").format(sql.Identifier(name)) for name in view.columns)
        answer = self.cursor.execute(sql.SQL("SELECT {} FROM {} v LIMIT 0").format(columns, relation)).description or []
        place = relation.as_string(self.cursor)
        never_null: list[Any] = []
        if not place.lstrip().startswith("("):
            # A query has no such columns to look up.
            never_null = self.cursor.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnotnull AND attnum > 0",
                [place],
            ).fetchall()
        return _Source(
            view=view,
            relation=relation,
            oids={column.name: column.type_code for column in answer},
            never_null=frozenset(name for (name,) in never_null),
        )


def _entity_columns(view: AsOfView) -> tuple[str, ...]:
    """The entity rows' columns that the view is joined by."""
    return tuple(sorted({key for _, key in view.keys}))


def _keys(columns: pa.Table) -> pa.Table:
    """Whole numbers as such: pandas makes floats of integers with a null among them, which have another index."""
    for place, column in enumerate(columns.columns):
        if pa.types.is_floating(column.type) and pc.all(pc.equal(pc.floor(column), column)).as_py():
            columns = columns.set_column(place, columns.field(place).name, pc.cast(column, pa.int64(), safe=False))
    return columns


def _sorted_places(entities: pa.Table, names: Sequence[str]) -> Rows:
    """Places of the rows in the order of some columns, so that neighbours in the index are probed one after another."""
    keys = [(name, "ascending") for name in names]
    plain = [_sortable(entities[name]) for name in names]
    table = pa.Table.from_arrays(plain, names=list(names))
    return pc.sort_indices(table, keys).to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _sortable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column


def _comparable(oid: int) -> sql.Composable:
    """The entity row's time in the type of a column: one without a zone is in UTC."""
    moment = sql.SQL("e.{}").format(sql.Identifier(MOMENT))
    return sql.SQL("({} AT TIME ZONE 'UTC')").format(moment) if oid in _NAIVE else moment


def _literal(at: datetime, oid: int) -> sql.Composable:
    value = sql.SQL("{}::timestamptz").format(sql.Literal(at))
    return sql.SQL("({} AT TIME ZONE 'UTC')").format(value) if oid in _NAIVE else value


def _plan(cursor: Cursor, query: sql.Composable) -> dict[str, Any]:
    row = cursor.execute(sql.SQL("EXPLAIN (FORMAT JSON) {}").format(query)).fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for part in plan.get("Plans", ()) for node in _nodes(part))]
