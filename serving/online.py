"""Features by name for whoever asks: from the online store's packed rows, without Feast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graph_features.clock import MAX_EVENT_MS, SECOND_MS, from_ms
from graph_features.errors import InvalidInputError
from graph_features.schema import Cadence, DType, EntityKey, ViewSchema
from graph_features.stores.blocks import RowBlock
from graph_features.stores.reader import ServiceSpec, ServiceView
from graph_features.transaction import REQUEST_FEATURES, TransactionColumns, request_features
from serving.scorer import OnlineReader

ACCOUNT_SERVICE = "account_features"
MODEL_SERVICE = "fraud_model_v1"
"""The feature services that feature_repo registers, by the same rule: see `services`."""

TRANSACTION_VIEW = "transaction_features"
REQUEST_COLUMNS = (
    "payment_timestamp",
    "amount_base",
    "channel",
    "sender_lat",
    "sender_lon",
    "receiver_lat",
    "receiver_lon",
)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Some features of a view, under a name of its own, found by these entity columns.

    `view` is None for the features of the payment itself, which are computed from the request.
    """

    name: str
    view: ViewSchema | None
    keys: tuple[str, ...]
    features: tuple[str, ...]

    def labels(self, *, full: bool) -> list[str]:
        """Column names: Feast's `view__feature`, or the feature alone."""
        return [f"{self.name}__{feature}" if full else feature for feature in self.features]


def of_names(schemas: Mapping[str, ViewSchema], names: Sequence[str]) -> list[Projection]:
    """Projections of "view:feature" names, or "view:*" for all of a view; raise InvalidInputError."""
    chosen: dict[str, dict[str, None]] = {}
    known = _known(schemas)
    for name in names:
        view_name, _, feature = name.partition(":")
        if view_name not in known:
            raise InvalidInputError(field="features", expected=f"a view among {', '.join(known)}", got=name)
        if feature != "*" and feature not in known[view_name]:
            raise InvalidInputError(
                field="features",
                expected=f"{view_name}:* or a feature of {view_name} (GET /features/catalog)",
                got=name,
            )
        chosen.setdefault(view_name, {}).update(dict.fromkeys(known[view_name] if feature == "*" else [feature]))
    return [_projection(schemas, name, tuple(features)) for name, features in chosen.items()]


def of_service(schemas: Mapping[str, ViewSchema], name: str) -> list[Projection]:
    """Projections of a feature service; raise InvalidInputError."""
    known = services(schemas)
    if name not in known:
        raise InvalidInputError(field="feature_service", expected=f"one of {', '.join(known)}", got=name)
    return known[name]


def services(schemas: Mapping[str, ViewSchema]) -> dict[str, list[Projection]]:
    """The feature services: everything about one account, and what the fraud model reads."""
    accounts = [view for view in schemas.values() if view.entity == "account"]
    pairs = [view for view in schemas.values() if view.entity == "pair"]
    model = [
        Projection(name=f"{side}_{view.name}", view=view, keys=(f"{side}_id",), features=view.names)
        for side in ("sender", "receiver")
        for view in accounts
    ]
    for view in pairs:
        forth, back = ("sender_id", "receiver_id"), ("receiver_id", "sender_id")
        model.append(Projection(name=view.name, view=view, keys=forth, features=view.names))
        model.append(Projection(name=f"reverse_{view.name}", view=view, keys=back, features=view.names))
    model.append(_projection(schemas, TRANSACTION_VIEW, tuple(feature.name for feature in REQUEST_FEATURES)))
    account = [Projection(name=view.name, view=view, keys=view.keys, features=view.names) for view in accounts]
    return {ACCOUNT_SERVICE: account, MODEL_SERVICE: model}


def service_spec(schemas: Mapping[str, ViewSchema], name: str) -> ServiceSpec:
    """The stored views of a feature service, for `read_service`; raise InvalidInputError.

    Features of the payment itself are not stored: see `graph_features.transaction.request_features`.
    """
    views = [
        ServiceView(name=one.name, view=one.view, columns=one.keys, features=one.features)
        for one in of_service(schemas, name)
        if one.view is not None
    ]
    return ServiceSpec(name=name, views=tuple(views))


def _known(schemas: Mapping[str, ViewSchema]) -> dict[str, tuple[str, ...]]:
    own = {name: view.names for name, view in schemas.items()}
    return {**own, TRANSACTION_VIEW: tuple(feature.name for feature in REQUEST_FEATURES)}


def _projection(schemas: Mapping[str, ViewSchema], name: str, features: tuple[str, ...]) -> Projection:
    view = schemas.get(name)
    return Projection(name=name, view=view, keys=() if view is None else view.keys, features=features)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Rows of one projection for n entities; `block` is None for features of the payment itself."""

    projection: Projection
    values: dict[str, list[Any]]
    block: RowBlock | None
    keys: list[EntityKey]


def read(
    online: OnlineReader, projections: Sequence[Projection], entities: Mapping[str, Sequence[Any]]
) -> tuple[list[Found], set[EntityKey]]:
    """Read the projections for n entities given by columns, times as RFC 3339 text; also return the pending keys."""
    stored = [projection for projection in projections if projection.view is not None]
    keys = [keys_of(projection, entities) for projection in stored]
    every = list(dict.fromkeys(key for group in keys for key in group))
    requests = [(item.view, group) for item, group in zip(stored, keys, strict=True) if item.view is not None]
    packed, pending = online.read_with_pending(requests, every)
    rows = iter(zip(keys, packed, strict=True))
    found: list[Found] = []
    for projection in projections:
        if projection.view is None:
            computed = of_payment(projection, entities)
            found.append(Found(projection=projection, values=computed, block=None, keys=[]))
            continue
        group, values = next(rows)
        block = RowBlock.from_packed(projection.view, values)
        decoded = {name: column(block, name, epoch_s=False) for name in projection.features}
        found.append(Found(projection=projection, values=decoded, block=block, keys=group))
    return found, set(pending)


def keys_of(projection: Projection, entities: Mapping[str, Sequence[Any]]) -> list[EntityKey]:
    """The entities that a projection's rows are of; raise InvalidInputError where a column of ids is missing."""
    missing = [name for name in projection.keys if name not in entities]
    if missing:
        raise InvalidInputError(field="entities", expected=f"ids under {missing[0]!r}", got=sorted(entities))
    return list(zip(*(entities[name] for name in projection.keys), strict=True))


def of_payment(projection: Projection, entities: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Features of the payment itself, from columns of the request; raise InvalidInputError."""
    for name in ("payment_timestamp", "amount_base"):
        if name not in entities:
            raise InvalidInputError(field="entities", expected=f"values under {name!r}", got=sorted(entities))
    given = {name: entities[name] for name in REQUEST_COLUMNS if name in entities}
    try:
        event_ms = np.array(given.pop("payment_timestamp"), np.int64) * SECOND_MS
        computed = request_features(TransactionColumns.from_mapping({**given, "event_timestamp": event_ms}))
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError(
            field="entities",
            expected="payment_timestamp in epoch seconds, amount_base and places as numbers",
            got=given,
        ) from None
    return {
        name: [None if value != value else value for value in computed[name].tolist()] for name in projection.features
    }


def column(block: RowBlock, name: str, *, epoch_s: bool) -> list[Any]:
    """One feature as plain values, None for null or absent; times as whole epoch seconds or as RFC 3339 text."""
    feature = block.view.feature(name)
    valid = block.valid(name).tolist()
    if feature.dtype.is_list:
        offsets, items = block.lists(name)
        bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        lists = [items[first:last].tolist() for first, last in bounds]
        return [value if known else None for value, known in zip(lists, valid, strict=True)]
    if feature.dtype is DType.FLOAT64:
        return [value if known else None for value, known in zip(block.float64(name).tolist(), valid, strict=True)]
    values = block.int64(name)[0].tolist()
    if feature.dtype is DType.TIMESTAMP:
        values = [value // SECOND_MS if epoch_s else instant(value) for value in values]
    return [value if known else None for value, known in zip(values, valid, strict=True)]


def statuses(block: RowBlock, name: str, *, now_ms: int) -> list[str]:
    """Per row PRESENT, NULL_VALUE, NOT_FOUND, or OUTSIDE_MAX_AGE for slices past their limit at `now_ms`."""
    view = block.view
    limit_ms = view.max_age_s * SECOND_MS if view.cadence is Cadence.SLICE and view.max_age_s else None
    old = now_ms - block.as_of_ms > limit_ms if limit_ms is not None else np.zeros(len(block), np.bool_)
    return [
        "NOT_FOUND" if not present else "OUTSIDE_MAX_AGE" if too_old else "PRESENT" if known else "NULL_VALUE"
        for present, too_old, known in zip(
            block.present.tolist(), old.tolist(), block.valid(name).tolist(), strict=True
        )
    ]


def instant(ms: int) -> str:
    """Epoch milliseconds as RFC 3339 text in UTC, milliseconds where there are any."""
    moment = from_ms(ms)
    return moment.isoformat(timespec="milliseconds" if ms % SECOND_MS else "seconds").replace("+00:00", "Z")


def instants(all_ms: Sequence[int]) -> list[str]:
    """`instant` of each."""
    if len(all_ms) < _MANY or not 0 <= min(all_ms) <= max(all_ms) < MAX_EVENT_MS:
        return [instant(ms) for ms in all_ms]
    texts = np.datetime_as_string(np.array(all_ms, "M8[ms]"), timezone="UTC").tolist()
    return [text.replace(".000Z", "Z") for text in texts]


_MANY = 8
