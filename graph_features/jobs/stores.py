"""What feature jobs work on."""

from __future__ import annotations

from typing import Protocol

from graph_features.settings import FeatureSettings
from graph_features.sources.base import GraphStore, RecordStore
from graph_features.stores.base import OfflineStore, OnlineStore


class Stores(Protocol):
    """The stores that feature jobs work on, opened when first used."""

    @property
    def records(self) -> RecordStore: ...
    @property
    def graph(self) -> GraphStore: ...
    @property
    def online(self) -> OnlineStore: ...
    @property
    def offline(self) -> OfflineStore: ...
    @property
    def feature_settings(self) -> FeatureSettings: ...
