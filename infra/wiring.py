"""The active profile's stores, opened once each when first asked for and closed together."""

from __future__ import annotations

from functools import cached_property
from types import TracebackType

from graph_features import backends
from graph_features.lazy_stores import LazyStores
from graph_features.settings import PlatformSettings, load
from graph_features.sources.base import GraphStore, RecordStore


class Platform(LazyStores):
    """What a command works with, tables made if missing: `with Platform() as platform: platform.records.ping()`."""

    def __init__(self, settings: PlatformSettings | None = None) -> None:
        self.settings = settings or load(PlatformSettings)
        self.settings.home.mkdir(parents=True, exist_ok=True)
        super().__init__(self.settings)

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

    def __enter__(self) -> Platform:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
