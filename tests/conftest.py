"""Fixtures for tests against real servers.

`postgres_server`, `redis_server`, `neo4j_server` start what is asked for once per run, in a home of their own
(RINGFENCE_TEST_HOME names one whose servers run already). `postgres_settings`, `redis_settings`, `neo4j_settings` and
`services_environment` give each test an empty database. Nothing starts before a test asks for it.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import prometheus_client  # noqa: F401 - before any test imports Feast, which sets it to files that all of a process share
import pytest
from hypothesis import settings as hypothesis_settings

if TYPE_CHECKING:
    from graph_features.settings import Neo4jSettings, PostgresSettings, RedisSettings
    from infra.local.servers import Services

StartServers = Callable[[str], "Services"]

REDIS_DATABASES = itertools.cycle(range(1, 64))  # 0 is left to who looks at a running set by hand
OWN_VARIABLES = ("RINGFENCE_", "FEAST_", "MLFLOW_", "PG")
NEEDED = {
    "postgres": {"postgres_server", "postgres_settings", "services_environment"},
    "redis": {"redis_server", "redis_settings", "services_environment"},
    "neo4j": {"neo4j_server", "neo4j_settings", "services_environment"},
}


def pytest_configure() -> None:
    """Let SIGTERM end the run as Ctrl-C does, with every fixture torn down; and SIGINT in a background job too."""
    # An example takes what a busy machine makes of it.
    hypothesis_settings.register_profile("ringfence", deadline=None)
    hypothesis_settings.load_profile("ringfence")

    run = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() == run:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # a forked child ends as it would without this handler
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, interrupt)
    # A shell starts background jobs with SIGINT ignored, which the processes that tests start would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def guarded_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """guarded_home(): an empty home; its servers are stopped and purged when this run ends, however it ends."""
    guards: list[subprocess.Popen[bytes]] = []

    def make() -> Path:
        home = tmp_path_factory.mktemp("servers")
        command = [sys.executable, "-m", "infra.local.guard", str(home)]
        guards.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))
        return home

    yield make
    # The guards do the stopping: they also do when this process is killed and never comes here.
    for guard in guards:
        assert guard.stdin is not None
        guard.stdin.close()
    codes = [guard.wait(timeout=120) for guard in guards]
    assert not any(codes), "servers of this run may be left running"


@pytest.fixture(scope="session")
def start_servers(request: pytest.FixtureRequest, guarded_home: Callable[[], Path]) -> StartServers:
    """start_servers(name): make sure that this server runs; the first call starts all that the run needs, at once."""
    from infra.local import servers

    given = os.environ.get("RINGFENCE_TEST_HOME")
    home = Path(given) if given else guarded_home()
    wanted = {name for name, fixtures in NEEDED.items() for item in request.session.items if fixtures & _fixtures(item)}
    running: set[str] = set()

    def start(name: str) -> Services:
        only = {name} if running else wanted | {name}
        if name not in running:
            servers.up(home, only=sorted(only), durable=False)
            running.update(only)
        return servers.existing(home)

    return start


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def postgres_server(start_servers: StartServers) -> PostgresSettings:
    """A running PostgreSQL; its main database is nobody's to fill, see postgres_settings."""
    return start_servers("postgres").postgres


@pytest.fixture(scope="session")
def redis_server(start_servers: StartServers) -> RedisSettings:
    """A running Redis; its database 0 is nobody's to fill, see redis_settings."""
    return start_servers("redis").redis


@pytest.fixture(scope="session")
def neo4j_server(start_servers: StartServers) -> Neo4jSettings:
    """A running Neo4j, with whatever the last test left in it: see neo4j_settings."""
    return start_servers("neo4j").neo4j


@pytest.fixture
def fresh_database(postgres_server: PostgresSettings) -> Iterator[Callable[[], PostgresSettings]]:
    """fresh_database(): one more empty PostgreSQL database; all are dropped after the test."""
    import psycopg
    from psycopg import sql

    made: list[str] = []
    with psycopg.connect(**postgres_server.conninfo(), autocommit=True) as connection:  # type: ignore[arg-type]

        def make() -> PostgresSettings:
            name = f"test_{secrets.token_hex(6)}"
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            made.append(name)
            return postgres_server.model_copy(update={"database": name})

        yield make
        for name in made:
            # Not WITH (FORCE): it is refused where autovacuum happens to be at work, which a plain DROP waits for.
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = %s AND backend_type = 'client backend'",
                (name,),
            )
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


@pytest.fixture
def postgres_settings(fresh_database: Callable[[], PostgresSettings]) -> PostgresSettings:
    """An empty database of this test's own."""
    return fresh_database()


@pytest.fixture
def redis_settings(redis_server: RedisSettings) -> Iterator[RedisSettings]:
    """An empty database number, flushed before and after."""
    import redis

    settings = redis_server.model_copy(update={"db": next(REDIS_DATABASES)})
    password = settings.password.get_secret_value()
    with redis.Redis(host=settings.host, port=settings.port, password=password, db=settings.db) as client:
        client.flushdb()
        yield settings
        client.flushdb()


@pytest.fixture(scope="session")
def neo4j_driver(neo4j_server: Neo4jSettings) -> Iterator[Any]:
    """One driver for emptying the graph between tests."""
    import neo4j

    auth = (neo4j_server.user, neo4j_server.password.get_secret_value())
    with neo4j.GraphDatabase.driver(neo4j_server.uri, auth=auth, notifications_min_severity="OFF") as driver:
        yield driver


@pytest.fixture
def neo4j_settings(neo4j_server: Neo4jSettings, neo4j_driver: Any) -> Neo4jSettings:
    """The one database of the community edition, without nodes, constraints and indexes."""
    with neo4j_driver.session(database=neo4j_server.database) as session:
        session.run("MATCH (n) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF 10000 ROWS").consume()
        for name in session.run("SHOW CONSTRAINTS YIELD name").value():
            session.run(f"DROP CONSTRAINT `{name}`").consume()
        for name in session.run("SHOW INDEXES YIELD name, type WHERE type <> 'LOOKUP' RETURN name").value():
            session.run(f"DROP INDEX `{name}`").consume()
    return neo4j_server


@pytest.fixture
def services_environment(
    tmp_path: Path,
    fresh_database: Callable[[], PostgresSettings],
    postgres_settings: PostgresSettings,
    redis_settings: RedisSettings,
    neo4j_settings: Neo4jSettings,
) -> dict[str, str]:
    """The whole environment for a subprocess in the services profile: empty databases, a home and MLflow of its own."""
    from infra.local import environment

    values = environment.environment(tmp_path / "home", [postgres_settings, redis_settings, neo4j_settings])
    values["MLFLOW_TRACKING_URI"] = environment.mlflow_uri(postgres_settings, fresh_database().database)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}
    return {**inherited, **values}
