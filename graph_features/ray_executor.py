"""Parts as tasks of a Ray cluster: the same work as in a pool of processes, on as many machines as there are.

Nothing is kept in Ray's object store but what a part returns. Tasks find their data themselves: in the stores, through
connections of their own, or in files that their node has.
"""

from __future__ import annotations

import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from graph_features.executor import PartResult
from graph_features.ray_cluster import adopt, connect, options, sent_environment
from graph_features.settings import ExecutorSettings

P = TypeVar("P")
R = TypeVar("R")


class RayExecutor:
    """`workers` tasks at once on a Ray cluster. One whose worker or node dies is done once more, on another.

    A worker that runs out of its task's memory fails that part alone. The connection outlives the executor.
    """

    def __init__(self, workers: int, *, settings: ExecutorSettings, retries: int = 1) -> None:
        self.workers = workers
        self.retried = 0
        """Parts that were begun again."""
        self._ray = connect(settings)
        self._retries = retries
        self._environment = sent_environment()
        self._memory_bytes = settings.ray_task_memory_mb << 20
        # Ray's own retries would go on for ever where memory runs out, and nobody would know of them.
        self._task = self._ray.remote(_do).options(max_retries=0, **options(settings))

    def map(self, function: Callable[[P], R], parts: Iterable[P]) -> Iterator[PartResult[P, R]]:
        waiting: deque[tuple[P, Any]] = deque()
        source = iter(parts)
        more = True
        try:
            while more or waiting:
                while more and len(waiting) < 2 * self.workers and self._running(waiting) < self.workers:
                    try:
                        part = next(source)
                    except StopIteration:
                        more = False
                    else:
                        waiting.append((part, self._start(function, part)))
                if waiting and self._is_done(waiting[0][1], wait=not more or len(waiting) == 2 * self.workers):
                    yield self._finish(function, *waiting.popleft())
                elif waiting and self._running(waiting) == self.workers:
                    self._ray.wait(self._unfinished(waiting), num_returns=1, fetch_local=False)
        finally:
            for _, reference in waiting:
                self._ray.cancel(reference, force=True)

    def _start(self, function: Callable[[P], R], part: P) -> Any:
        return self._task.remote(function, part, self._environment, self._memory_bytes)

    def _is_done(self, reference: Any, *, wait: bool) -> bool:
        done, _ = self._ray.wait([reference], timeout=None if wait else 0, fetch_local=False)
        return bool(done)

    def _unfinished(self, waiting: Iterable[tuple[P, Any]]) -> list[Any]:
        references = [reference for _, reference in waiting]
        if not references:
            return []
        _, unfinished = self._ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        return list(unfinished)

    def _running(self, waiting: Iterable[tuple[P, Any]]) -> int:
        return len(self._unfinished(waiting))

    def _finish(self, function: Callable[[P], R], part: P, reference: Any) -> PartResult[P, R]:
        from ray.exceptions import RayError, RayTaskError

        for attempt in range(self._retries + 1):
            try:
                return PartResult(part=part, value=self._ray.get(reference))
            except RayTaskError as error:  # the part's own error, wrapped
                cause = error.cause
                return PartResult(part=part, error=cause if isinstance(cause, Exception) else error)
            except RayError as error:  # the worker died, its node did, or what it returned is lost
                if attempt == self._retries:
                    return PartResult(part=part, error=error, lost=True)
                self.retried += 1
                reference = self._start(function, part)
        raise AssertionError("the last attempt returns")

    def close(self) -> None:
        """Nothing is left to end: `map` cancels what nobody waits for any more."""


def _do(function: Callable[[P], R], part: P, environment: Mapping[str, str], memory_bytes: int) -> R:
    adopt(environment)
    with at_most(memory_bytes):
        return function(part)


@contextmanager
def at_most(more_bytes: int) -> Iterator[None]:
    """Let this process have `more_bytes` of memory of its own on top of what it has now; 0 is no limit.

    Whatever wants more gets a MemoryError. Mapped files and Ray's object store do not count: they are shared.
    """
    if not more_bytes:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + more_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if before[1] < 0 else min(limit, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_bytes() -> int:
    """Return the size of this process's private memory, as the kernel counts it for the limit."""
    status = Path("/proc/self/status")
    if not status.exists():  # no Linux: the limit counts from nothing, which is less than what was meant
        return 0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmData"].split()[0]) << 10
