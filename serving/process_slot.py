"""A worker process behind a pipe of its own, and the thread that starts it, feeds it, watches it and replaces it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

from serving.memory import resident_bytes
from serving.slots import (
    START_TIMEOUT_S,
    PoolBrokenError,
    Shared,
    Slot,
    Task,
    TaskTimeoutError,
    WorkerLostError,
    WorkerTooLargeError,
)
from serving.watch import Watcher
from serving.worker import HandlerSpec, Reply, worker_main

_MEMORY_CHECK_S = 0.5
_FAR_ABOVE = 2
"""A worker so many times above its limit is ended at work: it would take the machine with it."""

_PIPE_TIMEOUT_S = 5


class ProcessSlot(Slot):
    """Keeps one worker process alive and hands it one task after the other."""

    start_errors = (OSError, EOFError, PoolBrokenError, TaskTimeoutError)

    def __init__(
        self,
        name: str,
        shared: Shared,
        spec: HandlerSpec,
        context: ForkServerContext | SpawnContext,
        watcher: Watcher,
        memory_limit: int,
    ) -> None:
        super().__init__(name, shared)
        self._spec = spec
        self._context = context
        self._watcher = watcher
        self._memory_limit = memory_limit
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self) -> None:
        # The fork server is started from here and inherits this: a stop that is sent to the whole group, as process
        # managers do, must not end it, for the workers would count as dead while their last tasks are still at work.
        # The tracker comes first: what starts it takes the block off again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        super().run()

    def _has_worker(self) -> bool:
        return self._process is not None

    def _is_up(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def _start_worker(self) -> None:
        ours, theirs = self._context.Pipe()
        _limit_blocking(ours)
        process = self._context.Process(target=worker_main, args=(theirs, self._spec), name=self.name, daemon=True)
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        _built(ours, self._receive(time.monotonic() + START_TIMEOUT_S))
        for call in list(self._shared.setup.values()):
            ours.send(call)
            _built(ours, self._receive(time.monotonic() + START_TIMEOUT_S))
        self._up(process.pid)
        self._watcher.watch(process.sentinel, partial(self._ended, process))

    def _ended(self, process: BaseProcess) -> None:
        """The watcher saw this process end: it counts no more, and the slot's thread wakes to replace it."""
        with self._shared.changed:
            if process is self._process:
                self._down()
            self._shared.changed.notify_all()

    def _next_task(self) -> Task | None:
        with self._shared.changed:
            self._shared.changed.wait_for(
                lambda: self.inbox or self._shared.queue or self._shared.closing or self.pid is None
            )
            return None if self._shared.closing or self.pid is None else self._take()

    def _run_task(self, task: Task) -> None:
        assert self._pipe is not None
        try:
            self._pipe.send(task.call)
            reply = self._receive(task.give_up, watched=True)
        except (OSError, EOFError):
            self._lost("worker died at work")
            self._retry(task, WorkerLostError())
        except TaskTimeoutError as error:
            self._kill()
            self._lost("worker hung")
            self._retry(task, error)
        except WorkerTooLargeError as error:
            self._kill()
            self._lost("worker far above its memory limit")
            self._retry(task, error)
        else:
            self._worked()
            task.finish(reply)
            self._replace_if_large()

    def _receive(self, deadline: float, *, watched: bool = False) -> Reply:
        assert self._pipe is not None
        while not self._pipe.poll(max(0.0, min(_MEMORY_CHECK_S, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise TaskTimeoutError
            if watched and self._memory_limit and self._memory() > _FAR_ABOVE * self._memory_limit:
                raise WorkerTooLargeError
        reply: Reply = self._pipe.recv()
        return reply

    def _memory(self) -> int:
        return 0 if self.pid is None else resident_bytes(self.pid)

    def _replace_if_large(self) -> None:
        """Between tasks: a worker that has leaked up to its limit is replaced."""
        if self._memory_limit and self._memory() > self._memory_limit:
            self._lost("worker above its memory limit", failed=False)

    def _worker_pid(self) -> int | None:
        # Known before the worker is up, and still when the watcher has seen its end.
        return None if self._process is None else self._process.pid

    def _end_worker(self, *, kill: bool) -> None:
        self._down()
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            if kill:
                self._kill()
            self._process.join(timeout=2.0)
            self._kill()
            self._process.join(timeout=2.0)
        self._process = self._pipe = None

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.is_alive():
            process.kill()


def _limit_blocking(pipe: Connection) -> None:
    """A stopped worker neither reads nor writes: reads and writes on its pipe fail after a while instead of waiting."""
    limit = struct.pack("ll", _PIPE_TIMEOUT_S, 0)
    with socket.socket(fileno=os.dup(pipe.fileno())) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _built(pipe: Connection, reply: Reply) -> None:
    if reply.error_type:
        pipe.close()
        raise PoolBrokenError(f"{reply.error_type}: {reply.error_message}")
