"""The handler of the worker that keeps the graph: not a feature worker, so that a slow graph delays nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping

from graph_features.ingest.sync import sync_graph
from graph_features.lazy_stores import LazyStores
from graph_features.settings import PlatformSettings


class GraphWorker:
    """Writes new transactions to the graph, over connections of its own, opened when first needed."""

    def __init__(self, platform: PlatformSettings, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._stores = LazyStores(platform)

    def sync_graph(self) -> str:
        """Write new transactions to the graph; say what was done."""
        return str(sync_graph(self._stores.records, self._stores.graph))

    def close(self) -> None:
        """Close the connections."""
        self._stores.close()
