"""The registry of feature functions and the views they form.

A feature is a plain function: its name is the column, its docstring the description, its decorator the rest::

    @feature(view=ACTIVITY, dtype=DType.INT64, unit="payments", range="0 or more", empty=0)
    def unique_counterparties_all(rows: AccountRows) -> Column:
        "Distinct accounts paid or paying."

What exists for both directions or several windows is written once. The direction begins each name, the window ends it
(`sent_count_7d`), and both stand in the docstring::

    @feature(view=ACTIVITY, sides=SIDES, windows=WINDOWS, dtype=DType.INT64, unit="payments", range="0 or more")
    def count(rows: AccountRows, side: Side, window: Window) -> Column:
        "Payments {side} in the last {window}."

The order of definition is the order of columns. `catalog()` imports every feature module once and returns the views.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from graph_features.embeddings import EMBEDDING_VIEWS
from graph_features.errors import UnknownFeatureError
from graph_features.schema import Cadence, DType, FeatureSchema, Renewal, ViewSchema
from graph_features.settings import FeatureSettings
from graph_features.window_spec import Window

FEATURE_MODULES = (
    "activity",
    "behaviour",
    "exposure",
    "windows",
    "neighbours",
    "pairs",
    "topology",
    "proximity",
    "rings",
)


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A registered feature: its schema, and the function that computes it for many rows at once.

    `family` is the function's name and `text` its docstring as written: of one family there may be a feature per side
    and window.
    """

    schema: FeatureSchema
    compute: Callable[[Any], Any]
    source: str
    family: str
    text: str
    side: str | None = None
    window: Window | None = None


@dataclass(kw_only=True)
class View:
    """A feature view under construction; feature modules make one each and register functions on it.

    `modules` names the modules, beside the functions themselves, whose code decides the values: a change there is a
    change of the view's `code_hash`.
    """

    name: str
    entity: str
    cadence: Cadence
    description: str
    renewed_by: tuple[Renewal, ...] = ()
    max_age_s: int | None = None
    modules: tuple[str, ...] = ()
    features: list[Feature] = field(default_factory=list)

    def add(self, feature: Feature) -> None:
        if any(existing.schema.name == feature.schema.name for existing in self.features):
            raise ValueError(f"view {self.name} already has a feature {feature.schema.name}")
        self.features.append(feature)

    def schema(self) -> ViewSchema:
        """Freeze the view into its schema."""
        digest = hashlib.sha256()
        for part in (self.name, self.entity, self.cadence, *self.renewed_by, str(self.max_age_s)):
            digest.update(part.encode() + b"\0")
        for module in self.modules:
            digest.update(_module_code(module).encode() + b"\0")
        for registered in self.features:
            schema = registered.schema
            for part in (schema.name, schema.dtype, schema.unit, repr(schema.empty), registered.source):
                digest.update(part.encode() + b"\0")
        return ViewSchema(
            name=self.name,
            entity=self.entity,
            cadence=self.cadence,
            description=self.description,
            features=tuple(registered.schema for registered in self.features),
            renewed_by=self.renewed_by,
            max_age_s=self.max_age_s,
            code_hash=digest.hexdigest()[:16],
        )


def feature(
    *,
    view: View,
    dtype: DType,
    unit: str,
    range: str,
    empty: float | None = None,
    sides: Sequence[str] = (),
    windows: Sequence[Window] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a feature of `view` under its own name, or as one per side, per window, or per both.

    The function takes the rows, then the side if there are `sides`, then the window if there are `windows`.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        code = _code(function)
        text = inspect.cleandoc(function.__doc__ or "")
        for side in sides or (None,):
            for window in windows or (None,):
                given = [part for part in (side, window) if part is not None]
                schema = FeatureSchema(
                    name=_variant(function.__name__, side, window),
                    dtype=dtype,
                    description=_told(text, side, window),
                    unit=unit,
                    range=range,
                    empty=empty,
                )
                view.add(
                    Feature(
                        schema=schema,
                        compute=partial(_compute, function, given) if given else function,
                        source=code + repr(given),
                        family=function.__name__,
                        text=text,
                        side=side,
                        window=window,
                    )
                )
        return function

    return register


def _variant(name: str, side: str | None, window: Window | None) -> str:
    parts = [*([side] if side is not None else []), name, *([window.name] if window is not None else [])]
    return "_".join(parts)


def _told(text: str, side: str | None, window: Window | None) -> str:
    if side is not None:
        text = text.replace("{side}", side)
    return text if window is None else text.replace("{window}", window.name)


def _compute(function: Callable[..., Any], given: Sequence[Any], rows: Any) -> Any:
    return function(rows, *given)


def _code(function: Callable[..., Any]) -> str:
    """The function's source without comments, docstring and layout, so that only a change of meaning changes it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    return ast.unparse(_without_docstrings(definition))


@cache
def _module_code(name: str) -> str:
    """The same of a whole module, which is read and not imported: kernels take a second to import."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return ast.unparse(_without_docstrings(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))))


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        documented = (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None
        )
        if documented:
            node.body = node.body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Every feature view, by name, in a fixed order."""

    views: dict[str, View]
    schemas: dict[str, ViewSchema]

    @cached_property
    def stored(self) -> dict[str, ViewSchema]:
        """Every view that stores hold rows of: those of the catalogue, and models' embeddings."""
        return {**self.schemas, **EMBEDDING_VIEWS}

    def view(self, name: str) -> View:
        if name not in self.views:
            raise UnknownFeatureError(f"no computed feature view {name!r}; there are {', '.join(self.schemas)}")
        return self.views[name]

    def schema(self, name: str) -> ViewSchema:
        """Return the schema of view `name`; raise UnknownFeatureError."""
        if name not in self.stored:
            raise UnknownFeatureError(f"no feature view {name!r}; there are {', '.join(self.schemas)}")
        return self.stored[name]

    def event_views(self) -> tuple[ViewSchema, ...]:
        return tuple(schema for schema in self.schemas.values() if schema.cadence is Cadence.EVENT)

    def slice_views(self) -> tuple[ViewSchema, ...]:
        return tuple(schema for schema in self.schemas.values() if schema.cadence is Cadence.SLICE)

    def feature_hash(self, names: Sequence[str] | None = None, *, settings: FeatureSettings) -> str:
        """A hash over definitions, code and constants of the named views (all by default): what a model learnt from."""
        digest = hashlib.sha256(settings.model_dump_json().encode())
        for name in sorted(names if names is not None else self.schemas):
            digest.update(f"{name}={self.schema(name).code_hash};".encode())
        return digest.hexdigest()[:16]


@cache
def catalog() -> Catalog:
    """Import the feature modules and return what they registered, in the order of FEATURE_MODULES."""
    views: dict[str, View] = {}
    for module_name in FEATURE_MODULES:
        module = importlib.import_module(f"graph_features.{module_name}")
        for value in vars(module).values():
            if isinstance(value, View):
                views[value.name] = value
    return Catalog(views=views, schemas={name: view.schema() for name, view in views.items()})
