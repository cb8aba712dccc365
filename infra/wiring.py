"""The active profile's stores, opened once each when first asked for and closed together."""

from __future__ import annotations

from functools import cached_property
from types import TracebackType

from graph_features import backends
from graph_features.settings import FeatureSettings, PlatformSettings, load
from graph_features.sources.base import GraphStore, RecordStore
from graph_features.stores.base import OfflineStore, OnlineStore


class Platform:
    """What a command works with: `with Platform() as platform: platform.records.ping()`."""

    def __init__(self, settings: PlatformSettings | None = None) -> None:
        self.settings = settings or load(PlatformSettings)
        self.settings.home.mkdir(parents=True, exist_ok=True)

    @cached_property
    def records(self) -> RecordStore:
        records = backends.open_records(self.settings)
        records.create_schema()
        return records

    @cached_property
    def graph(self) -> GraphStore:
        graph = backends.open_graph(self.settings)
        graph.create_schema()
        return graph

    @cached_property
    def online(self) -> OnlineStore:
        return backends.open_online(self.settings)

    @cached_property
    def offline(self) -> OfflineStore:
        return backends.open_offline(self.settings)

    @cached_property
    def feature_settings(self) -> FeatureSettings:
        return load(FeatureSettings)

    def close(self) -> None:
        for name in ("records", "graph", "online", "offline"):
            store = self.__dict__.pop(name, None)
            if store is not None:
                store.close()

    def __enter__(self) -> Platform:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
