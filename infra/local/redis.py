"""Redis with a password, on the loopback interface."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import SecretStr

from graph_features.errors import StoreUnavailableError
from graph_features.settings import RedisSettings
from infra.local.base import folder_of
from infra.local.binaries import Binary, find_redis
from infra.local.ports import HOST
from infra.local.state import ServerState, write_private
from infra.local.users import User

DATABASES = 64
# A crash must not forget which rows are pending: that would make stale ones look fresh.
DURABLE = ("appendonly yes", "appendfsync everysec", 'save ""')
NOT_DURABLE = ("appendonly no", 'save ""')


class RedisServer:
    """One Redis; durable means an append-only file: a killed server loses nothing, a lost machine the last second."""

    name = "redis"
    stop_signal = signal.SIGTERM
    purge_signal = signal.SIGKILL
    stop_limit_s = 30.0

    def user(self) -> User | None:
        """Redis runs as whoever starts it."""
        return None

    def find(self, *, packaged: bool, folder: Path | None) -> Binary:  # noqa: ARG002 - the protocol's, for PostgreSQL
        """See Server.find; any version reads the files of an older one."""
        return find_redis(packaged=packaged)

    def prepare(self, state: ServerState, say: Callable[[str], None]) -> None:  # noqa: ARG002 - nothing takes long
        """Write redis.conf; the password stands there because the command line is visible to others."""
        lines = [
            f"bind {HOST}",
            f"port {state.port}",
            "protected-mode yes",
            f"requirepass {state.password}",
            f"databases {DATABASES}",
            "daemonize no",
            *(DURABLE if state.durable else NOT_DURABLE),
            "tcp-keepalive 60",
        ]
        write_private(folder_of(state) / "redis.conf", "\n".join(lines) + "\n")

    def command(self, state: ServerState) -> Sequence[str | Path]:
        """See Server.command."""
        return [state.binary, folder_of(state) / "redis.conf"]

    def settings(self, state: ServerState) -> RedisSettings:
        """Database 0."""
        return RedisSettings(
            host=HOST, port=state.port, password=SecretStr(state.password), db=0, tls=False, timeout_s=5.0
        )

    def ping(self, state: ServerState) -> None:
        """PING after AUTH."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        once = Retry(NoBackoff(), 0)
        client = redis.Redis(host=HOST, port=state.port, password=state.password, socket_timeout=5.0, retry=once)
        try:
            client.ping()
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailableError(f"Redis on port {state.port} does not answer: {error}") from error
        finally:
            client.close()
