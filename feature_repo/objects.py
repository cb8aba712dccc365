"""Builds every Feast object from the catalogue's schemas."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, PushSource, RequestSource, ValueType
from feast.on_demand_feature_view import OnDemandFeatureView, on_demand_feature_view
from feast.types import Float64, Int64, String, UnixTimestamp

from feature_repo.stores.source import ViewSource
from feature_repo.stores.views import FEAST_TYPES
from graph_features.embeddings import EMBEDDING_VIEWS
from graph_features.schema import ViewSchema
from graph_features.transaction import REQUEST_FEATURES

MODEL_SERVICE = "fraud_model_v1"
HEAD_SERVICE = "fraud_head_v1"
ACCOUNT_SERVICE = "account_features"
TRANSACTION_VIEW = "transaction_features"
REVERSE = "reverse"
SIDES = {"sender": "sender_id", "receiver": "receiver_id"}
"""The two accounts of a payment and the entity column of each; account view v is aliased sender_v and receiver_v."""

_DESCRIPTIONS = {
    MODEL_SERVICE: "What the fraud model reads.",
    HEAD_SERVICE: "The same and accounts' embeddings: what a model whose first layers run in batch is trained from.",
}

PUSHED_VIEW = "account_activity"

ENTITIES = {
    "account": ("account_id", "An account that sends or receives payments."),
    "sender": ("sender_id", "The account that pays; with receiver, a pair."),
    "receiver": ("receiver_id", "The account that is paid; with sender, a pair."),
}
ENTITIES_OF = {"account": ("account",), "pair": ("sender", "receiver")}


def build(schemas: Mapping[str, ViewSchema]) -> dict[str, Any]:
    """Return every Feast object by the name it has in definitions.py."""
    objects: dict[str, Any] = {name: _entity(name) for name in ENTITIES}
    views = []
    for schema in schemas.values():
        source = ViewSource(view=schema)
        objects[source.name] = source
        if schema.name == PUSHED_VIEW:
            pushed = PushSource(name=f"{schema.name}_push", batch_source=source)
            objects[pushed.name] = pushed
        views.append(_view(schema, objects.get(f"{schema.name}_push", source), objects))
        objects[schema.name] = views[-1]
    request = _request()
    objects[request.name] = request
    objects[TRANSACTION_VIEW] = _transaction_view(request)
    computed = [view for view in views if view.name not in EMBEDDING_VIEWS]
    objects[MODEL_SERVICE] = _service(MODEL_SERVICE, schemas, computed, objects[TRANSACTION_VIEW])
    if len(computed) < len(views):
        objects[HEAD_SERVICE] = _service(HEAD_SERVICE, schemas, views, objects[TRANSACTION_VIEW])
    accounts: list[Any] = [view for view in computed if schemas[view.name].entity == "account"]
    objects[ACCOUNT_SERVICE] = FeatureService(
        name=ACCOUNT_SERVICE, features=accounts, description="Everything about one account."
    )
    return objects


def _entity(name: str) -> Entity:
    key, description = ENTITIES[name]
    return Entity(name=name, join_keys=[key], value_type=ValueType.STRING, description=description)


def _view(schema: ViewSchema, source: Any, objects: Mapping[str, Any]) -> FeatureView:
    fields = [Field(name=key, dtype=String) for key in schema.keys]
    for feature in schema.features:
        tags = {"unit": feature.unit, "range": feature.range, "empty": repr(feature.empty)}
        fields.append(
            Field(name=feature.name, dtype=FEAST_TYPES[feature.dtype], description=feature.description, tags=tags)
        )
    return FeatureView(
        name=schema.name,
        entities=[objects[name] for name in ENTITIES_OF[schema.entity]],
        schema=fields,
        source=source,
        # An event row counts until the next one comes; Feast reads 0 as "for ever".
        ttl=timedelta(seconds=schema.max_age_s or 0),
        online=True,
        description=schema.description,
        tags={"cadence": schema.cadence.value, "code_hash": schema.code_hash},
    )


def _request() -> RequestSource:
    places = [Field(name=f"{side}_{axis}", dtype=Float64) for side in SIDES for axis in ("lat", "lon")]
    return RequestSource(
        name="payment",
        schema=[
            Field(name="payment_timestamp", dtype=UnixTimestamp),
            Field(name="amount_base", dtype=Int64),
            Field(name="channel", dtype=String),
            *places,
        ],
        description="What a payment itself says: its time, minor units of the base currency, channel and places.",
    )


def _transaction_view(request: RequestSource) -> OnDemandFeatureView:
    # No descriptions: Feast compares these fields with those that it infers from a trial run.
    schema = [Field(name=feature.name, dtype=FEAST_TYPES[feature.dtype]) for feature in REQUEST_FEATURES]

    def transaction_features(inputs):  # type: ignore[no-untyped-def]
        # Feast runs this text again with only pandas and NumPy at hand: everything else is imported inside.
        from feature_repo.stores.request import payment_features

        return payment_features(inputs)

    decorate = on_demand_feature_view(
        name=TRANSACTION_VIEW,
        sources=[request],
        schema=schema,
        mode="pandas",
        description="Features of a payment alone, computed when asked for.",
    )
    made: OnDemandFeatureView = decorate(transaction_features)
    return made


def _service(
    name: str, schemas: Mapping[str, ViewSchema], views: list[FeatureView], transaction_view: OnDemandFeatureView
) -> FeatureService:
    """Both accounts of a payment, the pair there and back, and the payment."""
    features: list[Any] = []
    for side, column in SIDES.items():
        features += [
            view.with_name(f"{side}_{view.name}").with_join_key_map({"account_id": column})
            for view in views
            if schemas[view.name].entity == "account"
        ]
    turned = {"sender_id": "receiver_id", "receiver_id": "sender_id"}
    for view in views:
        if schemas[view.name].entity == "pair":
            # Named in both directions: Feast cannot compare a service that has a view with and without a name.
            features.append(view.with_name(view.name))
            features.append(view.with_name(f"{REVERSE}_{view.name}").with_join_key_map(turned))
    return FeatureService(name=name, features=[*features, transaction_view], description=_DESCRIPTIONS[name])
