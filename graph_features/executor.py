"""Where work that falls into parts is done: in this process, in processes that may die, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from graph_features.settings import ExecutorKind, ExecutorSettings, load

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class PartResult(Generic[P, R]):
    """What became of one part: its value, or the error that ended it."""

    part: P
    value: R | None = None
    error: Exception | None = None
    lost: bool = False
    """The error is the death of its worker, not one of the work."""

    def get(self) -> R:
        """Return the value; raise the error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


class Executor(Protocol):
    """Does the same work on many parts. `function` and parts are picklable; each part is independent of the others."""

    @property
    def workers(self) -> int:
        """How many parts are worked on at once."""

    def map(self, function: Callable[[P], R], parts: Iterable[P]) -> Iterator[PartResult[P, R]]:
        """Yield the result of every part, in order, a failed one as its error; takes parts a few ahead at most."""

    def close(self) -> None:
        """End the work; parts that are still under way are given up."""


class InProcess:
    """One part after the other, in the caller's own process."""

    workers = 1

    def map(self, function: Callable[[P], R], parts: Iterable[P]) -> Iterator[PartResult[P, R]]:
        for part in parts:
            try:
                result: PartResult[P, R] = PartResult(part=part, value=function(part))
            except Exception as error:  # noqa: BLE001  reported with its part, for the caller to judge
                result = PartResult(part=part, error=error)
            yield result

    def close(self) -> None:
        return None


class ProcessPool:
    """Worker processes, started when first needed. A worker that dies costs its part one retry, not the run.

    `timeout_s` ends a part that hangs (its worker with it); `initializer` runs once in every new worker.
    """

    def __init__(
        self,
        workers: int,
        *,
        retries: int = 1,
        timeout_s: float | None = None,
        initializer: Callable[..., None] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        from pebble import ProcessPool as PebblePool

        self.workers = workers
        self._retries = retries
        self._timeout_s = timeout_s
        # Not fork: the parent may hold threads and connections. A fork server starts a worker in 0.1 s.
        self._pool = PebblePool(
            max_workers=workers,
            initializer=initializer,
            initargs=initargs,
            context=multiprocessing.get_context("forkserver"),
        )

    def map(self, function: Callable[[P], R], parts: Iterable[P]) -> Iterator[PartResult[P, R]]:
        waiting: deque[tuple[P, Future[R]]] = deque()
        try:
            for part in parts:
                waiting.append((part, self._start(function, part)))
                if len(waiting) >= 2 * self.workers:
                    yield self._finish(function, *waiting.popleft())
            while waiting:
                yield self._finish(function, *waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def _start(self, function: Callable[[P], R], part: P) -> Future[R]:
        return self._pool.schedule(function, args=[part], timeout=self._timeout_s)

    def _finish(self, function: Callable[[P], R], part: P, future: Future[R]) -> PartResult[P, R]:
        from pebble import ProcessExpired

        for attempt in range(self._retries + 1):
            try:
                return PartResult(part=part, value=future.result())
            except ProcessExpired as error:
                if attempt == self._retries:
                    return PartResult(part=part, error=error, lost=True)
                future = self._start(function, part)
            except Exception as error:  # noqa: BLE001  reported with its part, for the caller to judge
                return PartResult(part=part, error=error)
        raise AssertionError("the last attempt returns")

    def close(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()


def open_executor(workers: int, settings: ExecutorSettings | None = None, *, retries: int = 1) -> Executor:
    """Return the executor that RINGFENCE_EXECUTOR names, for `workers` parts at once; close it when done.

    A part whose worker dies is begun again up to `retries` times.
    """
    settings = settings or load(ExecutorSettings)
    if settings.executor is ExecutorKind.PROCESS:
        return ProcessPool(workers, retries=retries)
    from graph_features.ray_executor import RayExecutor

    return RayExecutor(workers, settings=settings, retries=retries)
