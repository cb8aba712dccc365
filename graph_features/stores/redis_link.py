"""How Redis is reached: one server, the master that Sentinel names, or a cluster.

A link reads strings by name and runs the write script over (name, value) pairs, each in as few round trips as the
deployment allows: one for one server, one per master for a cluster, where commands are sent to all masters before the
first answer is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from graph_features.errors import SettingsError
from graph_features.settings import RedisSettings
from graph_features.stores.storing import slices

if TYPE_CHECKING:
    import redis

ROWS_PER_SCRIPT = 256
SCRIPTS_PER_TRIP = 16
ROWS_PER_TRIP = ROWS_PER_SCRIPT * SCRIPTS_PER_TRIP
KEYS_PER_MGET = 5_000
SCANNED_PER_STEP = 2_000

Tail = Callable[[slice], Sequence[Any]]
"""The script's last arguments for these rows: see storing.Storing."""


class RedisKind(StrEnum):
    """Values are those of Feast's own `redis_type`."""

    SINGLE = "redis"
    CLUSTER = "redis_cluster"
    SENTINEL = "redis_sentinel"


@dataclass(frozen=True, kw_only=True)
class RedisTarget:
    """Where Redis is. `options` go to redis-py as they are; `repr` shows no password."""

    kind: RedisKind
    nodes: tuple[tuple[str, int], ...]
    options: Mapping[str, Any] = field(repr=False)
    sentinel_master: str = "mymaster"

    @property
    def address(self) -> str:
        return ",".join(f"{host}:{port}" for host, port in self.nodes)

    @classmethod
    def from_settings(cls, settings: RedisSettings) -> RedisTarget:
        """One server, or with `cluster` any node of a cluster."""
        options: dict[str, Any] = {
            "password": settings.password.get_secret_value() or None,
            "ssl": settings.tls,
            "socket_timeout": settings.timeout_s,
            "socket_connect_timeout": settings.timeout_s,
        }
        if settings.tls_ca_file:
            options["ssl_ca_certs"] = settings.tls_ca_file
        if not settings.cluster:
            options["db"] = settings.db
        kind = RedisKind.CLUSTER if settings.cluster else RedisKind.SINGLE
        return cls(kind=kind, nodes=((settings.host, settings.port),), options=options)

    @classmethod
    def from_connection_string(
        cls, text: str, *, kind: str = RedisKind.SINGLE, sentinel_master: str = "mymaster"
    ) -> RedisTarget:
        """Read `host:port,host:port,name=value,...`, the form that Feast's own store takes; raise SettingsError.

        Values are JSON where they can be read as such (`db=0`, `ssl=true`), else text.
        """
        parts = [part.strip() for part in text.split(",") if part.strip()]
        nodes = [part.rpartition(":") for part in parts if "=" not in part]
        if not nodes or not all(host and port.isdigit() for host, _, port in nodes):
            # Never the text itself: it may hold a password.
            raise SettingsError("Redis connection_string: expected host:port[,host:port...][,name=value...]")
        pairs = (part.split("=", 1) for part in parts if "=" in part)
        return cls(
            kind=RedisKind(kind),
            nodes=tuple((host, int(port)) for host, _, port in nodes),
            options={name: _plain(value) for name, value in pairs},
            sentinel_master=sentinel_master,
        )


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


class Link(Protocol):
    """What the store asks of either kind of deployment."""

    client: Any

    def get(self, names: Sequence[bytes]) -> list[bytes | None]:
        """The strings of these names, in order."""

    def get_with_fields(
        self, hash_name: str, fields: Sequence[bytes], names: Sequence[bytes]
    ) -> tuple[list[bytes | None], list[bytes | None]]:
        """Fields of a hash, read first, and the strings of `names`."""

    def run(self, script: str, names: Sequence[bytes], values: Sequence[bytes], tail: Tail) -> int:
        """Run the write script over all pairs; return the sum of its answers."""

    def unlink(self, names: Sequence[bytes]) -> None:
        """Remove keys."""

    def scan(self, pattern: bytes) -> Iterator[bytes]:
        """Keys that match."""


def open_link(target: RedisTarget) -> Link:
    """Prepare the client; connections are opened when first used, those of a cluster at once."""
    from graph_features.stores.redis_cluster import ClusterLink

    return ClusterLink(target) if target.kind is RedisKind.CLUSTER else SingleLink(_client(target))


def _client(target: RedisTarget) -> redis.Redis:
    import redis
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry
    from redis.sentinel import Sentinel

    options: dict[str, Any] = {
        "socket_keepalive": True,
        "health_check_interval": 30,
        # One repeat hides a connection that the server closed while idle; every command here may be repeated. What has
        # not answered in time would not answer the repeat either, and the caller would wait for several times as long.
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.05), 1, supported_errors=(redis.ConnectionError,)),
        "client_name": "ringfence",
        **target.options,
    }
    if target.kind is RedisKind.SENTINEL:
        sentinel = Sentinel(list(target.nodes), **options)  # type: ignore[no-untyped-call]
        master: redis.Redis = sentinel.master_for(target.sentinel_master)  # type: ignore[no-untyped-call]
        return master
    host, port = target.nodes[0]
    return redis.Redis(host=host, port=port, **options)


class SingleLink:
    """One server; the pool behind the client drops connections that a fork brought along."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._scripts: dict[str, Any] = {}

    def get(self, names: Sequence[bytes]) -> list[bytes | None]:
        if len(names) <= KEYS_PER_MGET:
            found: list[bytes | None] = self.client.mget(names) if names else []  # type: ignore[assignment]
            return found
        return self.get_with_fields("", (), names)[1]

    def get_with_fields(
        self, hash_name: str, fields: Sequence[bytes], names: Sequence[bytes]
    ) -> tuple[list[bytes | None], list[bytes | None]]:
        pipeline = self.client.pipeline(transaction=False)
        groups = slices(len(fields), KEYS_PER_MGET)
        for part in groups:
            pipeline.hmget(hash_name, list(fields[part]))
        for part in slices(len(names), KEYS_PER_MGET):
            pipeline.mget(names[part])
        answers = pipeline.execute()
        first = [value for answer in answers[: len(groups)] for value in answer]
        return first, [value for answer in answers[len(groups) :] for value in answer]

    def run(self, script: str, names: Sequence[bytes], values: Sequence[bytes], tail: Tail) -> int:
        if script not in self._scripts:
            self._scripts[script] = self.client.register_script(script)
        registered, total = self._scripts[script], 0
        for trip in slices(len(names), ROWS_PER_TRIP):
            pipeline = self.client.pipeline(transaction=False)
            for part in slices(trip.stop, ROWS_PER_SCRIPT, trip.start):
                registered(keys=names[part], args=[*values[part], *tail(part)], client=pipeline)
            total += sum(pipeline.execute())
        return total

    def unlink(self, names: Sequence[bytes]) -> None:
        if names:
            self.client.unlink(*names)

    def scan(self, pattern: bytes) -> Iterator[bytes]:
        return self.client.scan_iter(match=pattern, count=SCANNED_PER_STEP)
