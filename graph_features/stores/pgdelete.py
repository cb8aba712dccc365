"""Removing rows from a view's table on PostgreSQL: of accounts that are erased, and of times past their retention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graph_features.clock import from_ms
from graph_features.schema import Cadence, DType, ViewSchema

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

SCHEMA = "features"


def named_rows(cursor: psycopg.Cursor, view: ViewSchema, entity_id: str) -> int:
    """Count the versions that name an account as a part of their key or in a list of ids."""
    from psycopg import sql

    lists = [feature.name for feature in view.features if feature.dtype is DType.STRING_LIST]
    named = [sql.SQL("{} = %(id)s").format(sql.Identifier(key)) for key in view.keys]
    named += [sql.SQL("%(id)s = ANY({})").format(sql.Identifier(name)) for name in lists]
    query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(_table(view), sql.SQL(" OR ").join(named))
    row = cursor.execute(query, {"id": entity_id}).fetchone()
    return 0 if row is None else int(row[0])


def delete_entities(cursor: psycopg.Cursor, view: ViewSchema, entity_ids: Sequence[str]) -> int:
    """Delete every version that names one of the accounts in its key; return how many."""
    from psycopg import sql

    named = [sql.SQL("{} = ANY(%(ids)s)").format(sql.Identifier(key)) for key in view.keys]
    query = sql.SQL("DELETE FROM {} WHERE {}").format(_table(view), sql.SQL(" OR ").join(named))
    return cursor.execute(query, {"ids": list(entity_ids)}).rowcount


def delete_before(cursor: psycopg.Cursor, view: ViewSchema, before_ms: int) -> int:
    """Delete versions older than an instant; of event views all but each entity's newest one of them."""
    from psycopg import sql

    old = sql.SQL("DELETE FROM {table} AS old WHERE event_timestamp < %(before)s").format(table=_table(view))
    if view.cadence is Cadence.EVENT:
        same = [sql.SQL("newer.{0} = old.{0}").format(sql.Identifier(key)) for key in view.keys]
        old += sql.SQL(
            " AND EXISTS (SELECT FROM {table} AS newer WHERE {same} AND newer.event_timestamp < %(before)s"
            " AND (newer.event_timestamp, newer.created_timestamp) > (old.event_timestamp, old.created_timestamp))"
        ).format(table=_table(view), same=sql.SQL(" AND ").join(same))
    return cursor.execute(old, {"before": from_ms(before_ms)}).rowcount


def _table(view: ViewSchema) -> sql.Identifier:
    from psycopg import sql

    return sql.Identifier(SCHEMA, view.name)
