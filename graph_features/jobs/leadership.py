"""Who of several schedulers acts: the one that holds a lock which its database, or the machine, takes from the dead."""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from graph_features.sources.filelock import file_lock

log = logging.getLogger(__name__)

# A leader whose machine vanished is noticed by the server after 10 + 3 * 5 seconds without an answer.
_KEEPALIVE = (
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
    "SET idle_session_timeout = 0",
)


class Leadership(Protocol):
    """`hold` says whether this process leads, and takes the lead if nobody has it; it never waits."""

    def hold(self) -> bool: ...

    def release(self) -> None: ...


def leadership(engine: sa.Engine, name: str) -> Leadership:
    """The lead of everything called `name` on one ledger: a session's advisory lock, or a lock on a file beside it."""
    if engine.dialect.name == "postgresql":
        return PostgresLeadership(engine, name)
    return FileLeadership(Path(f"{engine.url.database}-{name}.lock"))


class PostgresLeadership:
    """An advisory lock on a connection of its own, asked each time whether it still lives: with it goes the lock."""

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        digest = blake2b(f"ringfence:leader:{name}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, "big", signed=True)
        self._connection: sa.Connection | None = None

    def hold(self) -> bool:
        try:
            if self._connection is not None:
                self._connection.execute(sa.text("SELECT 1"))
                return True
            return self._take()
        except sa.exc.DBAPIError as error:
            log.warning("the lead is lost: %s", str(error.orig).strip())
            self.release()
            return False

    def _take(self) -> bool:
        connection = self._engine.connect()
        try:
            for setting in _KEEPALIVE:
                connection.execute(sa.text(setting))
            taken = bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(self._key))))
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        if taken:
            self._connection = connection
            return True
        connection.invalidate()  # the settings above are not for whoever would get it from the pool
        connection.close()
        return False

    def release(self) -> None:
        """Let go by ending the session."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sa.exc.SQLAlchemyError):
                connection.invalidate()
                connection.close()


class FileLeadership:
    """A lock on a file of this machine, which the system takes from a process that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: ExitStack | None = None

    def hold(self) -> bool:
        if self._held is None:
            with ExitStack() as stack:
                if stack.enter_context(file_lock(self._path)):
                    self._held = stack.pop_all()
        return self._held is not None

    def release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()
