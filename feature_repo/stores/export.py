"""A Feast feature service as plain data, for reading it without Feast."""

from __future__ import annotations

from feast import FeatureStore, FeatureView

from feature_repo.stores.packing import packing
from graph_features.errors import SchemaMismatchError
from graph_features.schema import ViewSchema
from graph_features.stores.reader import ServiceSpec, ServiceView


def service_spec(store: FeatureStore, name: str) -> ServiceSpec:
    """Return what `graph_features.stores.reader.read_service` takes; raise SchemaMismatchError.

    On-demand views are computed from the request, not read, and are left to the caller.
    """
    views = []
    for projection in store.get_feature_service(name).feature_view_projections:
        registered = store.registry.get_any_feature_view(projection.name, store.project)
        if not isinstance(registered, FeatureView):
            continue
        view = packing(registered, store.config).view
        keys = view.keys if isinstance(view, ViewSchema) else tuple(key for key, _ in view.keys)
        asked = tuple(field.name for field in projection.features)
        unknown = set(asked) - set(view.names)
        if unknown:
            raise SchemaMismatchError(f"service {name}: view {view.name} has no {', '.join(sorted(unknown))}; apply it")
        columns = tuple(projection.join_key_map.get(key, key) for key in keys)
        shown: str = projection.name_to_use()  # type: ignore[no-untyped-call]
        views.append(ServiceView(name=shown, view=view, columns=columns, features=asked))
    return ServiceSpec(name=name, views=tuple(views))
