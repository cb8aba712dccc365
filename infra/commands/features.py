"""apply, backfill, materialize, features: from records to feature rows."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from infra.console import duration, fail, instant, progress, say, table

if TYPE_CHECKING:
    from graph_features.schema import ViewSchema

Views = Annotated[list[str] | None, typer.Option("--views", help="Feature views; all by default.")]
From = Annotated[datetime, typer.Option("--from", parser=instant, metavar="INSTANT", help="Start, included.")]
To = Annotated[datetime, typer.Option("--to", parser=instant, metavar="INSTANT", help="End, excluded.")]


def apply() -> None:
    """Create the stores' tables and register every Feast object. Safe to repeat (the same as `feast apply`)."""
    import feature_repo
    from infra.wiring import Platform

    with Platform() as platform:
        feature_repo.apply(platform.settings)
    say("applied")


def features(
    ids: Annotated[list[str] | None, typer.Argument(help="Account ids; none lists the catalogue.")] = None,
    views: Views = None,
) -> None:
    """Show accounts' newest online features, or list the catalogue."""
    from graph_features.catalog import catalog

    known = catalog()
    chosen = [known.schema(name) for name in views or known.schemas]
    if not ids:
        for schema in chosen:
            rows = [[f.name, f.dtype, f.unit, " ".join(f.description.split())] for f in schema.features]
            table(f"{schema.name} ({schema.cadence})", ["feature", "type", "unit", "meaning"], rows)
        return
    missing = _show_online([schema for schema in chosen if schema.entity == "account"], ids)
    if missing:
        fail(f"no online row for {', '.join(missing)}: never seen, or not materialized yet")


def _show_online(schemas: list[ViewSchema], ids: list[str]) -> list[str]:
    from graph_features.clock import from_ms
    from graph_features.stores.blocks import RowBlock
    from infra.wiring import Platform

    keys = [(account_id,) for account_id in ids]
    with Platform() as platform:
        packed = platform.online.read([(schema, keys) for schema in schemas])
    missing = set(ids)
    for schema, values in zip(schemas, packed, strict=True):
        rows = RowBlock.from_packed(schema, values).to_arrow(keys).to_pylist()
        by_id = {row["account_id"]: row for row in rows}
        missing -= set(by_id)
        for account_id, row in by_id.items():
            as_of = row["event_timestamp"]
            title = f"{account_id} · {schema.name} · as of {as_of if not isinstance(as_of, int) else from_ms(as_of)}"
            table(title, ["feature", "value", "unit"], [[f.name, row[f.name], f.unit] for f in schema.features])
    return sorted(missing)
