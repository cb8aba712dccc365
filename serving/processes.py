"""Several server processes behind one port: a parent that listens, starts them, replaces those that end, and stops all.

They share one listening socket, so that no connection is lost with a process; each has pools, stores and a journal of
decisions of its own. A child ends when its parent does, however that ends.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType

from graph_features.settings import ServingSettings

log = logging.getLogger("ringfence.serving.processes")

LISTEN_FD = "RINGFENCE_SERVING_LISTEN_FD"
LEASH_FD = "RINGFENCE_SERVING_LEASH_FD"
"""Name to a child the inherited descriptors of the listening socket, and of a pipe that ends with its parent."""

BACKLOG = 2_048
POLL_S = 0.1
LONGEST_WAIT_S = 5.0
STABLE_S = 10.0
"""A child that lived so long was no failure of starting."""


def inherited() -> socket.socket | None:
    """The listening socket that a parent has handed down, if there is one; from then on this process ends with it."""
    number, leash = os.environ.pop(LISTEN_FD, ""), os.environ.pop(LEASH_FD, "")
    if leash:
        threading.Thread(target=_end_with_parent, args=(int(leash),), name="leash", daemon=True).start()
    return socket.socket(fileno=int(number)) if number else None


def _end_with_parent(leash: int) -> None:
    os.read(leash, 1)
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class _Child:
    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    due: float = 0.0


@dataclass
class Parent:
    """Keeps `settings.processes` servers up on one socket."""

    settings: ServingSettings
    environment: dict[str, str]
    _stop: threading.Event = field(default_factory=threading.Event)
    _leash: tuple[int, int] = (-1, -1)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit status: 0 when every child ended in order."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        with socket.create_server((self.settings.host, self.settings.port), backlog=BACKLOG) as listener:
            host, port = listener.getsockname()[:2]
            log.info("listening", extra={"url": f"http://{host}:{port}", "processes": self.settings.processes})
            self._leash = os.pipe()
            children = [_Child(number=number) for number in range(self.settings.processes)]
            while not self._stop.is_set():
                for child in children:
                    self._tend(child, listener)
                self._stop.wait(POLL_S)
            return self._end(children)

    def _tend(self, child: _Child, listener: socket.socket) -> None:
        now = time.monotonic()
        if child.process is not None:
            if child.process.poll() is None:
                return
            child.failures = child.failures + 1 if now - child.started < STABLE_S else 0
            log.warning("server ended", extra={"number": child.number, "status": child.process.returncode})
            # At once the first time, ever later while it does not stay up.
            child.process, child.due = None, now + min(LONGEST_WAIT_S, 0.1 * 2**child.failures - 0.1)
        if now >= child.due:
            child.process, child.started = self._start(listener), now

    def _start(self, listener: socket.socket) -> subprocess.Popen[bytes]:
        handed = {LISTEN_FD: str(listener.fileno()), LEASH_FD: str(self._leash[0])}
        environment = {**self.environment, **handed, "RINGFENCE_SERVING_PROCESSES": "1"}
        # A session of its own: a signal to the group reaches the parent alone, which sends it on once.
        return subprocess.Popen(
            [sys.executable, "-m", "serving.main"],
            env=environment,
            pass_fds=[listener.fileno(), self._leash[0]],
            start_new_session=True,
        )

    def _end(self, children: list[_Child]) -> int:
        running = [one.process for one in children if one.process is not None and one.process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        give_up = time.monotonic() + 3 * self.settings.drain_s + 30
        statuses = []
        for process in running:
            try:
                statuses.append(process.wait(max(0.1, give_up - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                statuses.append(process.wait())
        # One that was about to start has no handler yet, and ends by the signal itself.
        return int(any(status not in (0, -signal.SIGTERM) for status in statuses))

    def _leave(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what signal handlers take
        self._stop.set()


def exported(settings: ServingSettings) -> dict[str, str]:
    """The environment that gives a child these settings, whatever they came from."""
    prefix = str(settings.model_config.get("env_prefix", ""))
    named = {f"{prefix}{name}".upper(): getattr(settings, name) for name in type(settings).model_fields}
    plain = {name: str(value.value if hasattr(value, "value") else value) for name, value in named.items()}
    return {**os.environ, **plain}
