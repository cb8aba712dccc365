"""The state folder RINGFENCE_HOME/services: who runs where, with which password; one writer at a time."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from pydantic import TypeAdapter, ValidationError

from graph_features.errors import ServiceError
from infra.local.process import ProcessId


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """One server: what it runs from, where it listens and what it takes to log in. Kept readable by its owner alone."""

    name: str
    binary: str
    origin: str
    version: str
    port: int
    password: str = field(repr=False)
    data: str
    user: str | None
    durable: bool
    process: ProcessId | None


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What the state file holds; another layout gets another number."""

    format: Literal[1]
    servers: dict[str, ServerState]


_STORED = TypeAdapter(_Stored)


class StateFolder:
    """Reads and writes the state of all servers of one home; safe for threads, guarded by `locked` for processes."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.path = self.home / "services"
        self._file = self.path / "state.json"
        self._guard = threading.Lock()

    def create(self) -> None:
        """Make the folder, readable by its owner alone."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise ServiceError(f"the state folder {self.path} cannot be used: {error.strerror}") from error

    @contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Make the folder and hold its lock; `on_wait` is called once when another process has it."""
        path = self.path / "lock"
        while True:
            self.create()
            with exclusive(path, on_wait) as file:
                # Whoever held it before may have removed the folder and the lock with it.
                if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    yield
                    return

    def read(self) -> dict[str, ServerState]:
        """State by server name; empty when there is none."""
        try:
            return _STORED.validate_json(self._file.read_bytes(), strict=True).servers
        except FileNotFoundError:
            return {}
        except PermissionError:
            problem = "belongs to another user: go on as the user who started the servers"
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its beginning"
            # What stands there is left out on purpose: it may be a password.
            problem = f"is damaged at {where} ({error.errors()[0]['msg']}): restore it, or remove {self.path}"
        raise ServiceError(f"{self._file} {problem}") from None

    def put(self, state: ServerState) -> None:
        """Store one server's state."""
        with self._guard:
            stored = _Stored(format=1, servers={**self.read(), state.name: state})
            write_private(self._file, _STORED.dump_json(stored, indent=1).decode("utf-8") + "\n")


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None]) -> Iterator[TextIO]:
    """Hold the lock of a file; `on_wait` is called once when another process has it. Freed when its holder dies."""
    with path.open("w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step by one that only its owner can read."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)
