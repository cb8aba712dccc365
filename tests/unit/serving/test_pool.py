from __future__ import annotations

import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from graph_features.errors import StoreUnavailableError
from serving.pool import InlinePool, ProcessPool
from serving.slots import PoolBrokenError, TaskError, TaskTimeoutError, WorkerLostError, WorkerTooLargeError
from serving.threads import ThreadPool
from serving.worker import HandlerSpec

HANDLER = """
import gc, os, signal, time
from pathlib import Path

from graph_features.errors import StoreUnavailableError


class Handler:
    def __init__(self, folder):
        self.frozen = gc.get_freeze_count()
        self.folder = Path(folder)
        if (self.folder / "refuse").exists():
            raise OSError("told to refuse")
        self.greeting = "nobody"

    def pid(self):
        return os.getpid()

    def frozen_at_start(self):
        return self.frozen

    def greet(self, name):
        self.greeting = name
        return name

    def greeted(self):
        return self.greeting

    def sleep(self, seconds):
        time.sleep(seconds)
        return os.getpid()

    def die_once(self, name):
        marker = self.folder / name
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def stop_self(self, n_bytes):
        os.kill(os.getpid(), signal.SIGSTOP)

    def hang_once(self, name):
        marker = self.folder / name
        if not marker.exists():
            marker.touch()
            time.sleep(60)
        return "alive"

    def leak(self, megabytes):
        self.hoard = bytearray(b"x") * (megabytes << 20)
        return os.getpid()

    def leak_and_sleep(self, megabytes):
        self.leak(megabytes)
        time.sleep(60)

    def unavailable(self):
        raise StoreUnavailableError("the store is away")

    def wrong(self):
        return 1 // 0

    def unpicklable(self):
        return lambda: None

    def big(self, payload):
        return payload * 2
"""

MakePool = Callable[..., ProcessPool]


@pytest.fixture
def make_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePool]:
    (tmp_path / "pool_test_handler.py").write_text(textwrap.dedent(HANDLER))
    monkeypatch.syspath_prepend(tmp_path)
    pools: list[ProcessPool] = []

    def make(size: int = 1, memory_mb: int = 0) -> ProcessPool:
        spec = HandlerSpec(target="pool_test_handler:Handler", args=(str(tmp_path),))
        pools.append(ProcessPool(name="test", size=size, spec=spec, memory_mb=memory_mb))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def ask(pool: ProcessPool, method: str, *args: Any, timeout_s: float = 60.0) -> Any:
    return pool.submit(method, *args, timeout_s=timeout_s).result(timeout=90)


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_calls_run_in_another_process(make_pool: MakePool) -> None:
    """A call must be answered by a worker, not by the caller."""
    assert ask(make_pool(), "pid") != os.getpid()


def test_every_worker_takes_part(make_pool: MakePool) -> None:
    """Two calls that take a while must run in two processes at the same time."""
    pool = make_pool(size=2)
    pool.wait_ready()
    futures = [pool.submit("sleep", 0.3, timeout_s=60) for _ in range(2)]
    assert len({future.result(timeout=60) for future in futures}) == 2


def test_a_large_payload_comes_back(make_pool: MakePool) -> None:
    """Payloads larger than a pipe's buffer must pass both ways."""
    assert len(ask(make_pool(), "big", b"x" * 3_000_000)) == 6_000_000


def test_killed_idle_worker_is_replaced(make_pool: MakePool) -> None:
    """A worker killed while idle must be replaced without being asked, and no call may notice."""
    pool = make_pool()
    first = ask(pool, "pid")
    os.kill(first, signal.SIGKILL)
    until(lambda: pool.status().pids not in ((), (first,)))
    assert ask(pool, "pid") != first
    assert pool.status().restarts == 1
    assert pool.status().failures == 0


def test_killed_busy_worker_costs_one_retry(make_pool: MakePool) -> None:
    """A worker killed at work must cost its own task one retry and the others nothing."""
    pool = make_pool(size=2)
    pool.wait_ready()
    futures = [pool.submit("sleep", 0.2, timeout_s=20) for _ in range(6)]
    until(lambda: pool.status().busy == 2)
    os.kill(pool.status().pids[0], signal.SIGKILL)
    assert all(isinstance(future.result(timeout=20), int) for future in futures)
    assert pool.status().retries == 1


def test_task_that_kills_is_given_up(make_pool: MakePool) -> None:
    """A task that kills its worker twice must fail, and the pool must go on."""
    pool = make_pool()
    assert ask(pool, "die_once", "a") == "alive"
    with pytest.raises(WorkerLostError):
        ask(pool, "die")
    assert isinstance(ask(pool, "pid"), int)


def test_pool_survives_many_killers(make_pool: MakePool) -> None:
    """More killing tasks than the failure cap must not leave the pool broken for ever."""
    pool = make_pool()
    for _ in range(4):
        with pytest.raises((WorkerLostError, PoolBrokenError)):
            ask(pool, "die")
    until(lambda: pool.status().alive == 1)
    assert isinstance(ask(pool, "pid"), int)
    assert pool.status().failures == 0


def test_hung_worker_is_ended_by_the_deadline(make_pool: MakePool) -> None:
    """A hung call must end with its deadline and the worker be replaced."""
    pool = make_pool()
    first = ask(pool, "pid")
    begun = time.monotonic()
    with pytest.raises(TaskTimeoutError):
        ask(pool, "sleep", 60, timeout_s=0.5)
    assert time.monotonic() - begun < 30
    assert ask(pool, "pid") != first


def test_stopped_worker_is_ended_by_the_deadline(make_pool: MakePool) -> None:
    """A worker that is stopped by a signal must be replaced like one that hangs."""
    pool = make_pool()
    first = ask(pool, "pid")
    with pytest.raises(TaskTimeoutError):
        ask(pool, "stop_self", 0, timeout_s=0.5)
    assert ask(pool, "pid") != first


def test_worker_that_cannot_start_breaks_the_pool_until_it_can(make_pool: MakePool, tmp_path: Path) -> None:
    """When no worker can start, calls must fail fast; when the cause is gone, the pool must recover by itself."""
    (tmp_path / "refuse").touch()
    pool = make_pool()
    until(lambda: pool.status().broken)
    with pytest.raises(PoolBrokenError):
        pool.submit("pid", timeout_s=1)
    (tmp_path / "refuse").unlink()
    until(lambda: pool.status().alive == 1)
    assert isinstance(ask(pool, "pid"), int)


def test_wait_ready_says_when_workers_do_not_start(make_pool: MakePool, tmp_path: Path) -> None:
    """Waiting for workers that cannot start must raise, not wait for ever."""
    (tmp_path / "refuse").touch()
    with pytest.raises(PoolBrokenError, match="0 of 1 workers"):
        make_pool().wait_ready(timeout_s=60)


def test_new_workers_are_set_up_like_the_old(make_pool: MakePool) -> None:
    """What was said with `on_start` must have been called on a worker that replaces another."""
    pool = make_pool()
    for future in pool.everywhere("greet", "Ada", timeout_s=60):
        assert future.result(timeout=60) == "Ada"
    pool.on_start("greet", "Ada")
    os.kill(ask(pool, "pid"), signal.SIGKILL)
    until(lambda: pool.status().restarts == 1)
    assert ask(pool, "greeted") == "Ada"


def test_store_errors_keep_their_type(make_pool: MakePool) -> None:
    """A store that is away must reach the caller as StoreUnavailableError, other errors as TaskError."""
    pool = make_pool()
    with pytest.raises(StoreUnavailableError, match="the store is away"):
        ask(pool, "unavailable")
    with pytest.raises(TaskError, match="ZeroDivisionError"):
        ask(pool, "wrong")
    with pytest.raises(TaskError):
        ask(pool, "unpicklable")
    assert pool.status().restarts == 0


def test_close_lets_running_calls_end(make_pool: MakePool) -> None:
    """A close with time to drain must let running and queued calls end and refuse new ones."""
    pool = make_pool()
    pool.wait_ready()
    futures = [pool.submit("sleep", 0.2, timeout_s=60) for _ in range(2)]
    pool.close(drain_s=60)
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(PoolBrokenError):
        pool.submit("pid", timeout_s=1)


def test_close_without_drain_fails_what_waits(make_pool: MakePool) -> None:
    """A close without time to drain must fail waiting calls instead of leaving them open."""
    pool = make_pool()
    pool.wait_ready()
    running: list[Future[Any]] = [pool.submit("sleep", 30, timeout_s=60) for _ in range(3)]
    until(lambda: pool.status().busy == 1)
    pool.close()
    assert all(isinstance(future.exception(timeout=60), WorkerLostError) for future in running)


def test_workers_ignore_signals_to_the_group(make_pool: MakePool) -> None:
    """SIGTERM and SIGINT, which process managers send to every process, must not cut a worker short."""
    pool = make_pool()
    worker = ask(pool, "pid")
    future = pool.submit("sleep", 0.3, timeout_s=60)
    until(lambda: pool.status().busy == 1)
    os.kill(worker, signal.SIGTERM)
    os.kill(worker, signal.SIGINT)
    assert future.result(timeout=60) == worker


def test_a_stop_of_the_group_leaves_the_fork_server_to_the_workers(make_pool: MakePool) -> None:
    """SIGTERM to the fork server must not make its workers count as dead, nor keep new ones from starting."""
    forkserver._forkserver._stop()  # one that another test has started may have been started otherwise
    pool = make_pool(size=2)
    pool.wait_ready()
    server = forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGTERM)
    future = pool.submit("sleep", 0.3, timeout_s=60)
    assert future.result(timeout=60) in pool.status().pids
    os.kill(ask(pool, "pid"), signal.SIGKILL)
    until(lambda: pool.status().restarts == 1 and pool.status().alive == 2)
    assert forkserver._forkserver._forkserver_pid == server


def test_what_the_fork_server_imported_is_not_collected_again(make_pool: MakePool) -> None:
    """A worker's first collections must pass over what it shares with the others: that is most of its start."""
    assert ask(make_pool(), "frozen_at_start") > 1_000


def test_cancelled_call_is_not_run(make_pool: MakePool) -> None:
    """A call that was cancelled while it waited must be skipped."""
    pool = make_pool()
    pool.wait_ready()
    running = pool.submit("sleep", 0.3, timeout_s=60)
    until(lambda: pool.status().busy == 1)
    waiting = pool.submit("greet", "Bob", timeout_s=60)
    assert waiting.cancel()
    running.result(timeout=60)
    assert ask(pool, "greeted") == "nobody"


def test_a_hung_first_attempt_leaves_time_for_another(make_pool: MakePool) -> None:
    """A worker that hangs must cost its call the first attempt's time, not its answer."""
    pool = make_pool()
    pool.wait_ready()
    begun = time.monotonic()
    assert pool.submit("hang_once", "hung", timeout_s=60, hang_s=0.3).result(timeout=60) == "alive"
    assert time.monotonic() - begun < 30
    assert (pool.status().restarts, pool.status().retries) == (1, 1)


def test_a_worker_that_leaks_is_replaced_between_calls(make_pool: MakePool) -> None:
    """A worker above its memory limit must answer, and then make room for a new one."""
    pool = make_pool(memory_mb=150)
    worker = ask(pool, "pid")
    assert ask(pool, "leak", 200) == worker
    until(lambda: pool.status().restarts == 1 and pool.status().alive == 1)
    assert ask(pool, "pid") != worker


def test_a_worker_that_outgrows_the_machine_is_ended(make_pool: MakePool) -> None:
    """A call that takes far more than the limit must be ended, twice, and fail; the pool goes on."""
    pool = make_pool(memory_mb=60)
    with pytest.raises(WorkerTooLargeError):
        pool.submit("leak_and_sleep", 300, timeout_s=60).result(timeout=60)
    assert pool.status().restarts == 2
    assert ask(pool, "greet", "Ada") == "Ada"


class Echo:
    def __init__(self) -> None:
        self.closed = False

    def echo(self, value: int) -> int:
        return value

    def unavailable(self) -> None:
        raise StoreUnavailableError("away")

    def close(self) -> None:
        self.closed = True


def test_inline_pool_answers_and_closes() -> None:
    """The pool without processes must answer the same calls and close its handler."""
    echo = Echo()
    pool = InlinePool(name="inline", size=2, build=lambda: echo)
    assert pool.submit("echo", 7, timeout_s=1).result() == 7
    assert [future.result() for future in pool.everywhere("echo", 8, timeout_s=1)] == [8]
    with pytest.raises(StoreUnavailableError):
        pool.submit("unavailable", timeout_s=1).result()
    pool.close(drain_s=1)
    assert echo.closed
    assert pool.status().broken


def test_thread_pool_gives_each_thread_a_handler_of_its_own() -> None:
    """Calls of two threads must not share a handler, `everywhere` must reach all, and closing must close all."""
    handlers: list[Echo] = []

    class Slow(Echo):
        def who(self) -> int:
            time.sleep(0.05)
            return id(self)

    def build() -> Echo:
        handlers.append(Slow())
        return handlers[-1]

    pool = ThreadPool(name="threads", size=2, build=build)
    futures = [pool.submit("who", timeout_s=1) for _ in range(6)]
    assert {future.result(timeout=10) for future in futures} == {id(one) for one in handlers}
    assert len({future.result(timeout=10) for future in pool.everywhere("who", timeout_s=1)}) == 2
    assert pool.status().busy == 0
    pool.close(drain_s=1)
    assert all(one.closed for one in handlers)
    with pytest.raises(PoolBrokenError):
        pool.submit("who", timeout_s=1)
