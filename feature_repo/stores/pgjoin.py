"""The as-of join in PostgreSQL: entity rows in, one index probe per row and view, columns out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
from psycopg import sql

from feature_repo.stores.asof import AsOfView, entity_rows
from feature_repo.stores.pgcsv import fetch
from graph_features.stores.pgcopy import copy_chunks, copy_order, postgres_type

ROW = "__entity_row"
ENTITIES = sql.Identifier("pg_temp", "entity_rows")

Cursor = psycopg.Cursor[Any]


def upload(cursor: Cursor, entity_df: pd.DataFrame | str, views: list[AsOfView], timestamp: str) -> pa.Table:
    """Make the temporary table of entity rows, numbered, and return all their columns in that order."""
    if isinstance(entity_df, str):
        cursor.execute(
            sql.SQL("CREATE TEMPORARY TABLE entity_rows ON COMMIT DROP AS {}").format(
                sql.SQL("SELECT row_number() OVER () - 1 AS {}, * FROM ({}) AS entities").format(
                    sql.Identifier(ROW), sql.SQL(entity_df)
                )
            )
        )
        cursor.execute("ANALYZE entity_rows")
        ordered = sql.SQL("SELECT * FROM {} ORDER BY {}").format(ENTITIES, sql.Identifier(ROW))
        return fetch(cursor, ordered).drop_columns([ROW])
    entities, _ = entity_rows(entity_df)
    needed = list(dict.fromkeys([*(key for view in views for _, key in view.keys), timestamp]))
    numbered = entities.select(needed).append_column(ROW, pa.array(np.arange(entities.num_rows)))
    definitions = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(postgres_type(field.type)))
        for field in numbered.schema
    )
    cursor.execute(sql.SQL("CREATE TEMPORARY TABLE entity_rows ({}) ON COMMIT DROP").format(definitions))
    copy_rows(cursor, ENTITIES, numbered)
    cursor.execute("ANALYZE entity_rows")
    return entities


def copy_rows(cursor: Cursor, into: sql.Composable, table: pa.Table) -> None:
    ordered = table.select(copy_order(table.schema))
    names = sql.SQL(", ").join(map(sql.Identifier, ordered.column_names))
    with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(into, names)) as copy:
        for chunk in copy_chunks(ordered):
            copy.write(chunk)


def join(
    cursor: Cursor, view: AsOfView, rows: int, timestamp: str, filter_by_created_timestamp: bool
) -> list[tuple[str, pa.ChunkedArray]]:
    """Return the view's features for every entity row, in their order, null where there is no row."""
    relation, collations = _indexed(cursor, view, timestamp)
    moment = sql.SQL("e.{}").format(sql.Identifier(timestamp))
    newest = sql.SQL("v.{}").format(sql.Identifier(view.timestamp))
    conditions = [sql.SQL("{} <= {}").format(newest, moment)]
    order = [newest]
    for column, key in view.keys:
        collate = sql.SQL(f" COLLATE {collations[column]}") if column in collations else sql.SQL("")
        conditions.append(sql.SQL("v.{} = e.{}{}").format(sql.Identifier(column), sql.Identifier(key), collate))
    if view.ttl_s:
        conditions.append(sql.SQL("{} >= {} - make_interval(secs => {})").format(newest, moment, view.ttl_s))
    if view.created:
        created = sql.SQL("v.{}").format(sql.Identifier(view.created))
        order.append(created)
        if filter_by_created_timestamp:
            conditions.append(sql.SQL("{} <= {}").format(created, moment))
    query = sql.SQL(
        "SELECT e.{row}, joined.* FROM {entities} e CROSS JOIN LATERAL "
        "(SELECT {features} FROM {relation} v WHERE {where} ORDER BY {order} LIMIT 1) joined"
    ).format(
        row=sql.Identifier(ROW),
        entities=ENTITIES,
        features=sql.SQL(", ").join(
            sql.SQL("v.{} AS {}").format(sql.Identifier(column), sql.Identifier(f"f{i}"))
            for i, (column, _) in enumerate(view.features)
        ),
        relation=relation,
        where=sql.SQL(" AND ").join(conditions),
        order=sql.SQL(", ").join(sql.SQL("{} DESC").format(column) for column in order),
    )
    joined = fetch(cursor, query)
    place = np.full(rows, -1, np.int64)
    place[joined[ROW].to_numpy()] = np.arange(joined.num_rows)
    aligned = joined.drop_columns([ROW]).take(pa.array(place, mask=place < 0))
    return [(name, aligned[f"f{i}"]) for i, (_, name) in enumerate(view.features)]


def _indexed(cursor: Cursor, view: AsOfView, timestamp: str) -> tuple[sql.Composable, dict[str, str]]:
    """Return a relation with an index on (keys, time), and the collations of its text keys."""
    table = view.source.get_table_query_string()
    relation: sql.Composable = sql.SQL(table)
    name = table
    if not _has_index(cursor, table, view):
        name = f"pg_temp.indexed_{abs(hash(view.name)):x}"
        relation = sql.SQL(name)
        _copy_needed(cursor, view, relation, timestamp)
    collations = cursor.execute(
        "SELECT attname, attcollation::regcollation::text FROM pg_attribute "
        "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND attcollation <> 0",
        [name],
    ).fetchall()
    return relation, dict(collations)


def _has_index(cursor: Cursor, table: str, view: AsOfView) -> bool:
    """Whether some index of the table begins with the join keys, in any order, and then the event time."""
    if table.lstrip().startswith("("):
        return False
    rows = cursor.execute(
        "SELECT array_agg(attname::text ORDER BY place) FROM pg_index "
        "CROSS JOIN unnest(indkey) WITH ORDINALITY AS columns(number, place) "
        "JOIN pg_attribute ON attrelid = indrelid AND attnum = number "
        "WHERE indrelid = to_regclass(%s) AND indisvalid AND indpred IS NULL GROUP BY indexrelid",
        [table],
    ).fetchall()
    keys = {column for column, _ in view.keys}
    n = len(keys)
    return any(set(columns[:n]) == keys and columns[n : n + 1] == [view.timestamp] for (columns,) in rows)


def _copy_needed(cursor: Cursor, view: AsOfView, relation: sql.Composable, timestamp: str) -> None:
    """Copy the source's rows of the requested entities up to the last requested time, with an index."""
    same = [sql.SQL("e.{} = v.{}").format(sql.Identifier(key), sql.Identifier(column)) for column, key in view.keys]
    newest = sql.Identifier(view.timestamp)
    cursor.execute(
        sql.SQL(
            "CREATE TEMPORARY TABLE {relation} ON COMMIT DROP AS SELECT {columns} FROM {source} v "
            "WHERE v.{newest} <= (SELECT max({moment}) FROM {entities}) "
            "AND EXISTS (SELECT FROM {entities} e WHERE {same})"
        ).format(
            relation=relation,
            columns=sql.SQL(", ").join(sql.SQL("v.{}").format(sql.Identifier(name)) for name in view.columns),
            source=sql.SQL(view.source.get_table_query_string()),
            newest=newest,
            moment=sql.Identifier(timestamp),
            entities=ENTITIES,
            same=sql.SQL(" AND ").join([sql.SQL("true"), *same]),
        )
    )
    ordered: list[sql.Composable] = [sql.Identifier(column) for column, _ in view.keys]
    ordered.append(sql.SQL("{} DESC").format(newest))
    ordered += [sql.SQL("{} DESC").format(sql.Identifier(view.created))] if view.created else []
    cursor.execute(sql.SQL("CREATE INDEX ON {} ({})").format(relation, sql.SQL(", ").join(ordered)))
    cursor.execute(sql.SQL("ANALYZE {}").format(relation))
