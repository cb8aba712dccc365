"""The stores that jobs work on, opened when first used."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from graph_features import backends
from graph_features.settings import FeatureSettings, PlatformSettings, load
from graph_features.sources.base import GraphStore, RecordStore
from graph_features.stores.base import OfflineStore, OnlineStore


class LazyStores:
    """Opens each store of the active profile once, when it is asked for. Pickled it opens them anew elsewhere."""

    def __init__(self, platform: PlatformSettings) -> None:
        self._platform = platform

    @cached_property
    def records(self) -> RecordStore:
        return backends.open_records(self._platform)

    @cached_property
    def graph(self) -> GraphStore:
        return backends.open_graph(self._platform)

    @cached_property
    def online(self) -> OnlineStore:
        return backends.open_online(self._platform)

    @cached_property
    def offline(self) -> OfflineStore:
        return backends.open_offline(self._platform)

    @cached_property
    def feature_settings(self) -> FeatureSettings:
        return load(FeatureSettings)

    @property
    def cache_folder(self) -> Path:
        """What is in it can be made anew at any time."""
        return self._platform.home / "cache"

    def __reduce__(self) -> tuple[type[LazyStores], tuple[PlatformSettings]]:
        # Another process, on Ray another machine even, need not stand in the same folder.
        return LazyStores, (self._platform.model_copy(update={"home": self._platform.home.resolve()}),)

    def close(self) -> None:
        """Close what was opened."""
        for name in ("records", "graph", "online", "offline"):
            store = self.__dict__.pop(name, None)
            if store is not None:
                store.close()
