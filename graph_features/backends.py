"""Opens the four stores of the active profile. The only place that knows which class serves which profile."""

from __future__ import annotations

import math
from pathlib import Path

from graph_features.settings import Neo4jSettings, PlatformSettings, PostgresSettings, Profile, RedisSettings, load
from graph_features.sources.base import GraphStore, RecordStore
from graph_features.stores.base import OfflineStore, OnlineStore

RECORDS_CACHE = "cache/records"
"""Below RINGFENCE_HOME; may be deleted at any time."""

# Drivers are imported where they are used: an embedded install never loads psycopg, redis or neo4j.


def open_records(platform: PlatformSettings) -> RecordStore:
    """The system of record: PostgreSQL, or SQLite in RINGFENCE_HOME."""
    if platform.profile is Profile.SERVICES:
        from graph_features.sources.postgres import PostgresRecords

        return PostgresRecords(load(PostgresSettings), cache=platform.home / RECORDS_CACHE)
    from graph_features.sources.sqlite import SqliteRecords

    return SqliteRecords(platform.home / "records.sqlite", cache=platform.home / RECORDS_CACHE)


def open_graph(platform: PlatformSettings) -> GraphStore:
    """The graph: Neo4j, or DuckDB over Parquet segments in RINGFENCE_HOME."""
    if platform.profile is Profile.SERVICES:
        from graph_features.sources.neo4j import Neo4jGraph

        return Neo4jGraph(load(Neo4jSettings))
    from graph_features.sources.duckdb import DuckdbGraph

    return DuckdbGraph(platform.home / "graph")


def open_online(platform: PlatformSettings, *, answer_s: float = math.inf) -> OnlineStore:
    """Newest rows: Redis, which is waited for at most `answer_s` where its own setting is longer, or SQLite."""
    if platform.profile is Profile.SERVICES:
        from graph_features.stores.redis import RedisOnlineStore

        settings = load(RedisSettings)
        settings = settings.model_copy(update={"timeout_s": min(settings.timeout_s, answer_s)})
        return RedisOnlineStore(settings, project=platform.project)
    from graph_features.stores.sqlite import SqliteOnlineStore

    return SqliteOnlineStore(platform.home / "online.sqlite", project=platform.project)


def open_offline(platform: PlatformSettings) -> OfflineStore:
    """Every version of every row: PostgreSQL, or Parquet files in RINGFENCE_HOME."""
    if platform.profile is Profile.SERVICES:
        from graph_features.stores.postgres import PostgresOfflineStore

        return PostgresOfflineStore(load(PostgresSettings))
    from graph_features.stores.parquet import ParquetOfflineStore

    return ParquetOfflineStore(offline_folder(platform.home))


def offline_folder(home: Path) -> Path:
    """Where the embedded offline store keeps one folder of Parquet files per view."""
    return home / "offline"
