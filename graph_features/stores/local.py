"""Connections that belong to one thread of one process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Closeable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=Closeable)


class PerThread(Generic[T]):
    """Opens a connection the first time a thread of a process asks for it, so that none crosses a fork.

    Pickled and copied it opens afresh on the other side, as long as `open_one` can be pickled.
    """

    def __init__(self, open_one: Callable[[], T]) -> None:
        self._open_one = open_one
        self._lock = threading.Lock()
        self._opened: dict[tuple[int, int], T] = {}

    def get(self) -> T:
        owner = (os.getpid(), threading.get_ident())
        connection = self._opened.get(owner)
        if connection is None:
            connection = self._open_one()
            with self._lock:
                self._opened[owner] = connection
        return connection

    def drop(self) -> None:
        """Forget this thread's connection, for instance because it broke."""
        connection = self._opened.pop((os.getpid(), threading.get_ident()), None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close every connection that this process opened."""
        with self._lock:
            opened, self._opened = self._opened, {}
        for (pid, _), connection in opened.items():
            if pid == os.getpid():
                connection.close()

    def __getstate__(self) -> Callable[[], T]:
        return self._open_one

    def __setstate__(self, open_one: Callable[[], T]) -> None:
        self.__init__(open_one)  # type: ignore[misc]
