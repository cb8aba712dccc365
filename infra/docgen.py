"""Writes the pages that are derived from code: docs/configuration.md and docs/features.md (`make docs`)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from graph_features import settings as settings_module
from graph_features.catalog import Feature, catalog
from graph_features.schema import ViewSchema
from graph_features.transaction import REQUEST_FEATURES
from infra.reference import REFERENCE

DOCS = Path(__file__).parents[1] / "docs"


def settings_classes() -> Iterator[type[BaseSettings]]:
    """Every settings class, in the order of its definition."""
    for value in vars(settings_module).values():
        if inspect.isclass(value) and issubclass(value, BaseSettings) and value is not BaseSettings:
            yield value


def configuration_markdown() -> str:
    """Every environment variable with its type, default and meaning."""
    lines = [
        "# Configuration",
        "",
        "Everything is set by environment variables. In the services profile those that are missing are taken from the",
        "file that `ringfence services up` wrote.",
        "This page is made from `graph_features/settings.py` by `make docs`.",
    ]
    for settings_class in settings_classes():
        lines += ["", f"## {settings_class.__name__}", "", inspect.cleandoc(settings_class.__doc__ or ""), ""]
        lines += ["| variable | type | default | meaning |", "|---|---|---|---|"]
        prefix = str(settings_class.model_config.get("env_prefix", ""))
        for name, field in settings_class.model_fields.items():
            annotation = getattr(field.annotation, "__name__", str(field.annotation))
            if field.default_factory is not None:
                default = "number of cores" if name == "workers" else "empty"
            elif isinstance(field.default, SecretStr):
                default = "none"
            else:
                default = f"`{field.default}`"
            lines.append(f"| `{prefix}{name.upper()}` | {annotation} | {default} | {field.description or ''} |")
    return "\n".join(lines) + "\n"


def features_markdown() -> str:
    """Every feature of every view, and where the features of the reference list are."""
    known = catalog()
    count = sum(len(schema.features) for schema in known.schemas.values())
    lines = [
        "# Features",
        "",
        f"{count} features in {len(known.schemas)} views. This page is made from the catalogue by `make docs`;",
        "[the guide](features-guide.md) says what the words mean.",
        "Amounts are in minor units of the base currency; timestamps are UTC with milliseconds.",
        "*Empty* is the value of an account that was never seen; null is masked, never zero.",
        "What exists per direction or window has one line: `sent_count_…` with the window 7d is `sent_count_7d`.",
    ]
    for name, view in known.views.items():
        lines += ["", *_view_markdown(known.schemas[name], view.features)]
    lines += ["", *_transaction_markdown(), "", *_reference_markdown()]
    return "\n".join(lines) + "\n"


def _view_markdown(schema: ViewSchema, features: list[Feature]) -> list[str]:
    renewal = f"renewed by {', '.join(schema.renewed_by)}" if schema.renewed_by else "renewed on a schedule"
    limit = f", absent after {schema.max_age_s // 3600} h" if schema.max_age_s else ""
    source = "records" if schema.renewed_by else "records, as one graph"
    lines = [f"## {schema.name}", "", schema.description, ""]
    lines += [f"Entity {schema.entity}; {schema.cadence} cadence, {renewal}{limit}. Source: {source}.", ""]
    lines += ["| feature | window | type | unit | range | empty | meaning |", "|---|---|---|---|---|---|---|"]
    families: dict[str, list[Feature]] = {}
    for feature in features:
        families.setdefault(feature.family, []).append(feature)
    return lines + [_family_row(members) for members in families.values()]


def _family_row(members: list[Feature]) -> str:
    first = members[0]
    windows = list(dict.fromkeys(member.window.name for member in members if member.window is not None))
    sides = list(dict.fromkeys(member.side for member in members if member.side is not None))
    ending = "_…" if windows else ""
    names = ", ".join(f"`{name}{ending}`" for name in ([f"{s}_{first.family}" for s in sides] or [first.family]))
    text = first.text.replace("{side}", " or ".join(sides)).replace(", window: {window}", "")
    text = text.replace("; label window: {window}", "; by when labels became known")
    schema = first.schema
    nothing = "[]" if schema.dtype.is_list else "null"
    empty = nothing if schema.empty is None else f"{schema.empty:g}"
    cells = [names, ", ".join(windows), schema.dtype, schema.unit, schema.range, empty, _cell(text)]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _transaction_markdown() -> list[str]:
    lines = ["## The payment itself", "", "Computed from the request, in training and serving by one function.", ""]
    lines += ["| feature | unit | range | meaning |", "|---|---|---|---|"]
    rows = [f"| `{one.name}` | {one.unit} | {one.range} | {_cell(one.description)} |" for one in REQUEST_FEATURES]
    return lines + rows


def _reference_markdown() -> list[str]:
    lines = ["## The reference list", ""]
    lines += [
        "Fifty features of an account and twelve of a payment, as they are commonly listed, and their columns.",
        "Ages and times since are taken at the instant of the payment from the times kept; T6 has a column per known",
        "channel; T8 and T9 are ranks in the histograms; T10 and T11 come from the row of the pair (receiver, sender).",
        "",
    ]
    lines += ["| no. | name | column |", "|---|---|---|"]
    for number, name, columns in REFERENCE:
        lines.append(f"| {number} | {name} | {', '.join(f'`{column}`' for column in columns)} |")
    return lines


PAGES = {"configuration.md": configuration_markdown, "features.md": features_markdown}


def main() -> None:
    """Write every derived page."""
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
