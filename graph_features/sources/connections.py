"""A small pool of PostgreSQL connections that says at once why a server does not answer.

psycopg_pool connects from background threads, so a caller learns of a refused connection only as a timeout, and a
process that forks inherits a pool without its threads. Here the caller connects itself: the server's own reason comes
back immediately, there are no threads, and a process that finds itself forked starts with an empty pool.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from graph_features.errors import StoreUnavailableError
from graph_features.settings import PostgresSettings

Connection = psycopg.Connection[tuple[object, ...]]

# What a person has to mend outside of the program; every other database error is a mistake in it and stays as it is.
_OUTSIDE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    errors.InsufficientPrivilege,
    errors.ReadOnlySqlTransaction,
    errors.UndefinedTable,
    errors.InvalidSchemaName,
)


class Connections:
    """Autocommit connections to one database, at most `limit` at once, for any number of threads and forks.

    Nothing is opened before the first use. `max_wait_s` bounds the wait for a connection that other threads hold.
    """

    def __init__(self, settings: PostgresSettings, *, limit: int = 16, max_wait_s: float = 30.0) -> None:
        self._settings = settings
        self._limit = limit
        self._max_wait_s = max_wait_s
        self._inherited: list[list[Connection]] = []
        self._guard = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._idle: list[Connection] = []
        self._slots = threading.BoundedSemaphore(self._limit)

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """Lend a connection; raise StoreUnavailableError when the server does not answer or says no."""
        slots = self._take_slot()
        try:
            with self.translated():
                connection = self._idle_connection() or self._connect()
                try:
                    yield connection
                finally:
                    self._give_back(connection)
        finally:
            slots.release()

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """Lend a connection outside of the pool and close it afterwards: what holds a session lock needs one."""
        with self.translated():
            connection = self._connect()
            try:
                yield connection
            finally:
                connection.close()

    def close(self) -> None:
        """Close the idle connections; the pool can be used again afterwards."""
        if os.getpid() == self._pid:
            while connection := self._idle_connection():
                connection.close()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn database errors that lie outside of the program into StoreUnavailableError, without the password."""
        try:
            yield
        except errors.LockNotAvailable as error:
            raise StoreUnavailableError(
                f"{self._where()}: another writer holds the ingest lock for too long"
            ) from error
        except (errors.UndefinedTable, errors.InvalidSchemaName) as error:
            raise StoreUnavailableError(
                f"{self._where()} has no tables yet (`ringfence ingest` makes them by create_schema)"
            ) from error
        except _OUTSIDE as error:
            raise StoreUnavailableError(
                f"{self._where()} does not serve us: {_reason(error)}; check that it runs "
                "(`ringfence services status`) and the RINGFENCE_POSTGRES_ settings"
            ) from error

    def _where(self) -> str:
        settings = self._settings
        return f"PostgreSQL at {settings.host}:{settings.port} (database {settings.database}, user {settings.user})"

    def _take_slot(self) -> threading.BoundedSemaphore:
        with self._guard:
            if os.getpid() != self._pid:
                # The parent's sockets: kept, because closing or collecting them would speak on the parent's behalf.
                self._inherited.append(self._idle)
                self._reset()
            slots = self._slots
        if not slots.acquire(timeout=self._max_wait_s):
            raise StoreUnavailableError(f"{self._where()}: all {self._limit} connections busy for {self._max_wait_s} s")
        return slots

    def _connect(self) -> Connection:
        return psycopg.connect(
            **self._settings.conninfo(),  # type: ignore[arg-type]
            autocommit=True,
            application_name="ringfence",
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
        )

    def _idle_connection(self) -> Connection | None:
        """An idle connection that is still alive: a server that has gone away leaves its end of the socket readable."""
        while True:
            with self._guard:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            poll = select.poll()
            poll.register(connection.fileno(), select.POLLIN)
            if not connection.closed and not poll.poll(0):
                return connection
            connection.close()

    def _give_back(self, connection: Connection) -> None:
        if not connection.closed and connection.info.transaction_status is TransactionStatus.IDLE:
            with self._guard:
                self._idle.append(connection)
        else:
            connection.close()


def _reason(error: psycopg.Error) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
