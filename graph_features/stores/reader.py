"""The columnar read of serving: entity ids and a feature service in, float32 matrices out, without Feast.

`read_service` is the one public function. What it takes, a ServiceSpec, is plain data: serving makes it from the
catalogue (`serving.online.service_spec`), a Feast repo from its registry (`feature_repo.stores.export.service_spec`),
and it travels as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from graph_features.errors import InvalidInputError
from graph_features.schema import ViewSchema
from graph_features.stores.base import ValueStore
from graph_features.stores.blocks import RowBlock
from graph_features.stores.general import GeneralBlock, GeneralField, GeneralView, Kind
from graph_features.stores.heads import Bool, Float32, Int64
from graph_features.stores.keys import encode_key, row_prefix, typed_keys

AnyView = ViewSchema | GeneralView
AnyBlock = RowBlock | GeneralBlock

NO_ENTITY = "__dummy_id"
"""The join key, an empty text, that Feast gives to views without an entity."""


@dataclass(frozen=True, kw_only=True)
class ServiceView:
    """Some features of a view under a name of its own; `columns` are the entity columns that hold its join keys.

    `columns` come in the order of the view's own keys.
    """

    name: str
    view: AnyView
    columns: tuple[str, ...]
    features: tuple[str, ...]

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Those features that are numbers, truth values or times: what has a place in a matrix."""
        return tuple(name for name in self.features if _is_number(self.view, name))


def _is_number(view: AnyView, name: str) -> bool:
    if isinstance(view, GeneralView):
        return view.fields[view.position(name)].kind is not Kind.MESSAGE
    return not view.feature(name).dtype.is_list


@dataclass(frozen=True, kw_only=True)
class ServiceSpec:
    """A feature service: its views in order."""

    name: str
    views: tuple[ServiceView, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Columns of the matrix: `view__feature`, as Feast's full feature names."""
        return tuple(f"{one.name}__{feature}" for one in self.views for feature in one.numbers)

    def to_json(self) -> dict[str, Any]:
        views = []
        for one in self.views:
            kind = "general" if isinstance(one.view, GeneralView) else "own"
            shown = {"name": one.name, "columns": list(one.columns), "features": list(one.features)}
            views.append({**shown, "kind": kind, "view": asdict(one.view)})
        return {"name": self.name, "views": views}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ServiceSpec:
        views = []
        for one in data["views"]:
            view = _general_view(one["view"]) if one["kind"] == "general" else ViewSchema.from_json(one["view"])
            columns, features = tuple(one["columns"]), tuple(one["features"])
            views.append(ServiceView(name=one["name"], view=view, columns=columns, features=features))
        return cls(name=data["name"], views=tuple(views))


def _general_view(data: Mapping[str, Any]) -> GeneralView:
    fields = tuple(GeneralField(**{**field, "kind": Kind(field["kind"])}) for field in data["fields"])
    return GeneralView(name=data["name"], keys=tuple((key, kind) for key, kind in data["keys"]), fields=fields)


@dataclass(frozen=True, kw_only=True)
class FeatureMatrix:
    """n entities, the F numbers of a service and its V views.

    `values` is float32[n, F], NaN where null or absent; times are epoch milliseconds of the platform's views and epoch
    seconds of others, as each keeps them. `valid` is bool[n, F]. `present` and `mismatched` (a row of another schema,
    which counts as absent) are bool[n, V], `event_ms` is int64[n, V], epoch milliseconds, 0 where absent. `blocks` has
    the rows by view, for lists and texts and for more than float32 can tell.
    """

    names: tuple[str, ...]
    values: Float32
    valid: Bool
    present: Bool
    mismatched: Bool
    event_ms: Int64
    blocks: dict[str, AnyBlock]


def read_service(store: ValueStore, service: ServiceSpec, entities: Mapping[str, Sequence[Any]]) -> FeatureMatrix:
    """Read a service's features for n entities given by columns (id n of each column is entity n's).

    One round trip; the answers are those of Feast's `get_online_features`. Raises InvalidInputError for a missing
    column, columns of different lengths or an id of another type, StoreUnavailableError.
    """
    n = _count(service, entities)
    given = {NO_ENTITY: [""] * n, **entities}
    ends: dict[Any, list[bytes]] = {}
    names: list[bytes] = []
    for one in service.views:
        made = (_key_of(one.view), one.columns)
        if made not in ends:
            ends[made] = _key_ends(one, given)
        prefix = row_prefix(store.project, one.view.name)
        names += [prefix + end for end in ends[made]]
    values = store.get(names)
    blocks = [_block(one.view, values[place * n : place * n + n]) for place, one in enumerate(service.views)]
    return _matrix(service, blocks, n)


def _count(service: ServiceSpec, entities: Mapping[str, Sequence[Any]]) -> int:
    used = dict.fromkeys(name for one in service.views for name in one.columns if name != NO_ENTITY)
    for name in used:
        if name not in entities:
            raise InvalidInputError(field="entities", expected=f"ids under {name!r}", got=sorted(entities))
    lengths = {name: len(entities[name]) for name in used or entities}
    if len(set(lengths.values())) > 1:
        raise InvalidInputError(field="entities", expected="as many ids in every column", got=lengths)
    return max(lengths.values(), default=0)


def _key_of(view: AnyView) -> Any:
    return view.keys if isinstance(view, GeneralView) else view.entity


def _block(view: AnyView, values: Sequence[bytes | None]) -> AnyBlock:
    return (
        GeneralBlock.from_packed(view, values) if isinstance(view, GeneralView) else RowBlock.from_packed(view, values)
    )


def _matrix(service: ServiceSpec, blocks: Sequence[AnyBlock], n: int) -> FeatureMatrix:
    values = np.empty((n, len(service.names)), np.float32)
    valid = np.empty(values.shape, np.bool_)
    present, mismatched = np.empty((n, len(blocks)), np.bool_), np.empty((n, len(blocks)), np.bool_)
    event_ms = np.empty(present.shape, np.int64)
    at = 0
    for place, (one, block) in enumerate(zip(service.views, blocks, strict=True)):
        end = at + len(one.numbers)
        values[:, at:end] = block.matrix(one.numbers)
        valid[:, at:end] = _valid(block, one.numbers)
        present[:, place], mismatched[:, place] = block.present, block.mismatched
        event_ms[:, place] = np.where(block.present, _event_ms(block), 0)
        at = end
    return FeatureMatrix(
        names=service.names,
        values=values,
        valid=valid,
        present=present,
        mismatched=mismatched,
        event_ms=event_ms,
        blocks={one.name: block for one, block in zip(service.views, blocks, strict=True)},
    )


def _valid(block: AnyBlock, names: Sequence[str]) -> Bool:
    if isinstance(block, GeneralBlock):
        valid: Bool = block.valid_all[:, [block.view.position(name) for name in names]]
        return valid
    places = {name: place for place, name in enumerate(block.view.names)}
    own: Bool = block.columns.valid[:, [places[name] for name in names]]
    return own


def _event_ms(block: AnyBlock) -> Int64:
    return block.event_us // 1_000 if isinstance(block, GeneralBlock) else block.as_of_ms


# ---------------------------------------------------------------- entity keys


def _key_ends(one: ServiceView, entities: Mapping[str, Sequence[Any]]) -> list[bytes]:
    if isinstance(one.view, GeneralView):
        columns = [(kind, entities[name]) for name, (_, kind) in zip(one.columns, one.view.keys, strict=True)]
        try:
            return typed_keys(columns)
        except (KeyError, TypeError, ValueError):
            raise _wrong_ids(one.columns, columns) from None
    for name in one.columns:
        if not all(isinstance(value, str) for value in entities[name]):
            raise InvalidInputError(field=name, expected="ids as text", got=list(entities[name][:3]))
    return [encode_key(key) for key in zip(*(entities[name] for name in one.columns), strict=True)]


def _wrong_ids(names: Sequence[str], columns: Sequence[tuple[str, Sequence[Any]]]) -> InvalidInputError:
    """What to say of the first column whose ids are not of their type."""
    for name, column in zip(names, columns, strict=True):
        kind, ids = column
        try:
            typed_keys([column])
        except (KeyError, TypeError, ValueError):
            return InvalidInputError(field=name, expected=f"ids of type {kind}", got=list(ids[:3]))
    return InvalidInputError(field="entities", expected="ids of their columns' types", got=list(names))
