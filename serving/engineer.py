"""The handler of feature worker processes: reads the records, computes rows, stores the newest ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import pyarrow as pa

from graph_features import refresh
from graph_features.catalog import catalog
from graph_features.clock import EPOCH, MAX_EVENT_MS
from graph_features.contracts import STORED_TRANSACTION_SCHEMA
from graph_features.drivers import batch, on_demand
from graph_features.edges import EdgeTable
from graph_features.lazy_stores import LazyStores
from graph_features.schema import ENTITY_KEYS, EntityKey, ViewSchema
from graph_features.settings import FeatureSettings, PlatformSettings
from graph_features.sources.base import GraphStore, RecordStore
from graph_features.stores.base import OfflineStore, OnlineStore
from graph_features.stores.codec import encode
from serving.engineering import Moment, PackedRows


class FeatureHandler:
    """Computes rows from the stores and the constants that features depend on."""

    def __init__(
        self,
        *,
        records: RecordStore,
        graph: GraphStore,
        online: OnlineStore,
        offline: OfflineStore,
        settings: FeatureSettings,
    ) -> None:
        self._records = records
        self._graph = graph
        self._online = online
        self._offline = offline
        self._settings = settings

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the stores answer."""
        for store in (self._records, self._graph, self._online, self._offline):
            store.ping()

    def ping_graph(self) -> None:
        """Raise StoreUnavailableError unless the graph answers."""
        self._graph.ping()

    def ping_offline(self) -> None:
        """Raise StoreUnavailableError unless the offline store answers."""
        self._offline.ping()

    def create_views(self) -> None:
        """Have a place offline for the rows of every event view."""
        for view in catalog().event_views():
            self._offline.create_view(view)

    def warm_up(self) -> None:
        """Compute the event views of one made-up payment: compiles every kernel, or loads it from its cache."""
        payment = {name: _PAYMENT.get(name) for name in STORED_TRANSACTION_SCHEMA.names}
        edges = EdgeTable.from_arrow(pa.Table.from_pylist([payment], schema=STORED_TRANSACTION_SCHEMA))
        for view in catalog().event_views():
            for _ in batch.latest_rows(view, edges, None, before_ms=MAX_EVENT_MS, settings=self._settings):
                pass

    def seen(self, accounts: Sequence[str], before_ms: int) -> set[str]:
        """Those of the accounts that sent or received anything before `before_ms`."""
        return self._records.known_accounts(accounts, before_ms=before_ms)

    def refresh(self, keys: Sequence[EntityKey]) -> dict[EntityKey, str]:
        """Store the newest event rows of accounts and pairs; return those that could not be computed, with reasons."""
        report = refresh.refresh(
            keys, records=self._records, online=self._online, offline=self._offline, settings=self._settings
        )
        return report.failed

    def rows_at(self, moments: Sequence[Moment]) -> dict[Moment, PackedRows | None]:
        """Event rows as of each moment, packed; None for those that could not be computed. Nothing is stored."""
        keys_at: dict[int, list[EntityKey]] = {}
        for key, at_ms in moments:
            keys_at.setdefault(at_ms, []).append(key)
        found: dict[Moment, PackedRows | None] = {}
        for at_ms, keys in keys_at.items():
            found |= {(key, at_ms): packed for key, packed in self._rows_at(keys, at_ms).items()}
        return found

    def _rows_at(self, keys: Sequence[EntityKey], at_ms: int) -> dict[EntityKey, PackedRows | None]:
        views = catalog().event_views()
        by_entity = {name: [key for key in keys if len(key) == len(parts)] for name, parts in ENTITY_KEYS.items()}
        done = on_demand.latest_rows(views, by_entity, self._records, before_ms=at_ms, settings=self._settings)
        packed: dict[EntityKey, PackedRows | None] = {key: _nothing(views, key) for key in keys}
        for view in views:
            table = done.tables[view.name]
            columns = [table[name].to_pylist() for name in view.keys]
            for key, value in zip(zip(*columns, strict=True), encode(view, table), strict=True):
                rows = packed.get(key)
                if rows is not None:
                    rows[view.name] = value
        return packed | dict.fromkeys(done.failed)


_PAYMENT = {
    "seq": 1,
    "transaction_id": "warm-up",
    "event_timestamp": EPOCH,
    "sender_id": "a",
    "receiver_id": "b",
    "amount": 100,
    "currency": "EUR",
    "amount_base": 100,
}


def _nothing(views: Sequence[ViewSchema], key: EntityKey) -> PackedRows:
    return {view.name: None for view in views if len(view.keys) == len(key)}


class FeatureWorker(FeatureHandler):
    """A FeatureHandler with connections of its own to the stores of the active profile."""

    def __init__(self, platform: PlatformSettings, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._stores = LazyStores(platform)
        super().__init__(
            records=self._stores.records,
            graph=self._stores.graph,
            online=self._stores.online,
            offline=self._stores.offline,
            settings=self._stores.feature_settings,
        )
        self.create_views()
        self.warm_up()

    def close(self) -> None:
        """Close the connections."""
        self._stores.close()
