"""Writes the pages that are derived from code: docs/configuration.md and docs/features.md (`make docs`)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from graph_features import settings as settings_module
from graph_features.catalog import catalog
from graph_features.schema import ViewSchema

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
    """Every feature of every view with unit, range and meaning."""
    schemas = catalog().schemas
    count = sum(len(schema.features) for schema in schemas.values())
    lines = [
        "# Features",
        "",
        f"{count} features in {len(schemas)} views. This page is made from the catalogue by `make docs`.",
        "Amounts are in minor units of the base currency; timestamps are UTC with milliseconds.",
        "*Without history* is the value for an account that was never seen; null is masked, never zero.",
    ]
    for schema in schemas.values():
        lines += ["", *_view_markdown(schema)]
    return "\n".join(lines) + "\n"


def _view_markdown(schema: ViewSchema) -> list[str]:
    renewal = f"renewed by {', '.join(schema.renewed_by)}" if schema.renewed_by else "renewed on a schedule"
    limit = f", absent after {schema.max_age_s // 3600} h" if schema.max_age_s else ""
    lines = [f"## {schema.name}", "", schema.description, ""]
    lines += [f"Entity {schema.entity}; {schema.cadence} cadence, {renewal}{limit}.", ""]
    lines += ["| feature | type | unit | range | without history | meaning |", "|---|---|---|---|---|---|"]
    for feature in schema.features:
        nothing = "empty" if feature.dtype.is_list else "null"
        empty = nothing if feature.empty is None else f"{feature.empty:g}"
        meaning = " ".join(feature.description.split()).replace("|", "\\|")
        lines.append(f"| `{feature.name}` | {feature.dtype} | {feature.unit} | {feature.range} | {empty} | {meaning} |")
    return lines


PAGES = {"configuration.md": configuration_markdown, "features.md": features_markdown}


def main() -> None:
    """Write every derived page."""
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
