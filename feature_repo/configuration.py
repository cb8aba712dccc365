"""Feast's configuration for a profile, and the application of objects to it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from feast import Entity, FeatureService, FeatureStore, FeatureView, OnDemandFeatureView, RepoConfig
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_NAME
from sqlalchemy.pool import NullPool

from feature_repo import REPO_FOLDER
from feature_repo.objects import build
from graph_features.backends import offline_folder
from graph_features.catalog import catalog
from graph_features.schema import ViewSchema
from graph_features.settings import PlatformSettings, PostgresSettings, Profile, load

FILES = {Profile.EMBEDDED: "feature_store.yaml", Profile.SERVICES: "feature_store.services.yaml"}
KINDS = (DataSource, Entity, OnDemandFeatureView, FeatureView, FeatureService)


def repo_config(platform: PlatformSettings) -> RepoConfig:
    """Return the profile's configuration file with the places of `platform` in it."""
    values: dict[str, Any] = yaml.safe_load((REPO_FOLDER / FILES[platform.profile]).read_text(encoding="utf-8"))
    values["project"] = platform.project
    # Feast never closes its registry; connections that are not kept need no closing.
    values["registry"]["sqlalchemy_config_kwargs"] = engine = dict[str, Any](poolclass=NullPool)
    if platform.profile is Profile.SERVICES:
        # The whole of it: sslmode and time limits too, and a password with any character.
        engine["connect_args"] = load(PostgresSettings).conninfo()
    else:
        home = platform.home.resolve()
        values["registry"]["path"] = f"sqlite:///{home / 'registry.sqlite'}"
        values["online_store"]["path"] = str(home / "online.sqlite")
        values["offline_store"]["path"] = str(offline_folder(home))
    return RepoConfig(**values, repo_path=Path(REPO_FOLDER))


def apply_objects(store: FeatureStore, schemas: Mapping[str, ViewSchema] | None) -> None:
    """Register the objects of these schemas, the catalogue's by default, and remove what is not among them."""
    objects = list(build(catalog().stored if schemas is None else schemas).values())
    wanted = {_identity(one) for one in objects}
    gone = [one for one in _registered(store) if _identity(one) not in wanted]
    with warnings.catch_warnings():
        # The one on-demand view reads requests only, never a large history.
        warnings.filterwarnings("ignore", "On demand feature view is an experimental feature", RuntimeWarning)
        store.apply(objects, objects_to_delete=gone, partial=False)


def _registered(store: FeatureStore) -> list[Any]:
    registry, project = store.registry, store.project
    entities = [entity for entity in registry.list_entities(project) if entity.name != DUMMY_ENTITY_NAME]
    return [
        *registry.list_data_sources(project),
        *entities,
        *registry.list_feature_views(project),
        *registry.list_on_demand_feature_views(project),
        *registry.list_feature_services(project),
    ]


def _identity(one: Any) -> tuple[int, str]:
    return next(place for place, kind in enumerate(KINDS) if isinstance(one, kind)), one.name
