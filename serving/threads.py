"""Handlers on threads of the server itself, one each: no pipes and no copies, but one interpreter lock for all."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from serving.pool import PoolStatus
from serving.slots import PoolBrokenError


class _Guarded:
    """A handler that one thread uses at a time."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self._lock = threading.Lock()

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        with self._lock:
            return getattr(self.handler, method)(*args)


class ThreadPool:
    """`size` handlers and as many threads. A call that hangs cannot be ended: `timeout_s` and `hang_s` mean nothing."""

    def __init__(self, *, name: str, size: int, build: Callable[[], Any]) -> None:
        self.name = name
        self.size = size
        self._handlers = [_Guarded(build()) for _ in range(size)]
        self._idle: queue.SimpleQueue[_Guarded] = queue.SimpleQueue()
        for one in self._handlers:
            self._idle.put(one)
        self._threads = ThreadPoolExecutor(max_workers=size, thread_name_prefix=name)
        # Apart, so that a model is loaded beside the scoring that goes on.
        self._aside = ThreadPoolExecutor(max_workers=size, thread_name_prefix=f"{name}-aside")
        self._closed = False

    def submit(
        self,
        method: str,
        *args: Any,
        timeout_s: float,  # noqa: ARG002 - threads cannot be ended
        hang_s: float | None = None,  # noqa: ARG002
    ) -> Future[Any]:
        """Call `method` on any handler."""
        self._check_open()
        return self._threads.submit(self._run, method, args)

    def _run(self, method: str, args: tuple[Any, ...]) -> Any:
        one = self._idle.get()
        try:
            return one.call(method, args)
        finally:
            self._idle.put(one)

    def everywhere(self, method: str, *args: Any, timeout_s: float) -> list[Future[Any]]:  # noqa: ARG002
        """Call `method` on every handler."""
        self._check_open()
        return [self._aside.submit(one.call, method, args) for one in self._handlers]

    def on_start(self, method: str, *args: Any) -> None:
        """Nothing starts later."""

    def status(self) -> PoolStatus:
        """Threads do not die; `busy` is how many handlers are in use."""
        return PoolStatus(
            name=self.name,
            size=self.size,
            alive=0 if self._closed else self.size,
            busy=self.size - self._idle.qsize(),
            queued=self._threads._work_queue.qsize(),
            restarts=0,
            retries=0,
            failures=0,
            broken=self._closed,
            pids=(),
        )

    def close(self, *, drain_s: float = 0.0) -> None:
        """Take no more, let what runs end, then close the handlers."""
        if self._closed:
            return
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=drain_s <= 0)
        self._aside.shutdown(wait=True, cancel_futures=True)
        for one in self._handlers:
            close: Callable[[], None] | None = getattr(one.handler, "close", None)
            if close is not None:
                close()

    def _check_open(self) -> None:
        if self._closed:
            raise PoolBrokenError(f"{self.name}: the server is stopping")
