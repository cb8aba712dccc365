"""What Feast knows of the platform: objects, plugins, and one way to open the store of the active profile.

Feast takes seconds to import: everything here imports it when called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from graph_features.settings import PlatformSettings

if TYPE_CHECKING:
    import feast

    from graph_features.schema import ViewSchema

REPO_FOLDER = Path(__file__).resolve().parent


def open_store(platform: PlatformSettings) -> feast.FeatureStore:
    """Open Feast on the active profile's stores; build one per process, after any fork.

    The registry, the offline and the online store are those of `platform.home` (embedded) or of RINGFENCE_POSTGRES_*
    and RINGFENCE_REDIS_* (services).
    """
    import feast

    from feature_repo.configuration import repo_config

    return feast.FeatureStore(config=repo_config(platform))


def apply(platform: PlatformSettings, schemas: Mapping[str, ViewSchema] | None = None) -> feast.FeatureStore:
    """Create the offline tables and register every Feast object, as often as wanted; return the store.

    `schemas` are those of the catalogue by default. Objects that are no longer defined are removed from the registry,
    and their rows from the online store.
    """
    from feature_repo.configuration import apply_objects

    store = open_store(platform)
    apply_objects(store, schemas)
    return store
