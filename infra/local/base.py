"""What the three servers have in common."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from pydantic_settings import BaseSettings

from infra.local.binaries import Binary
from infra.local.state import ServerState
from infra.local.users import User

Progress = Callable[[str, str], None]
"""progress(server, what it does now)"""


def no_progress(server: str, text: str) -> None:
    """Tell nobody."""


class Server(Protocol):
    """How one kind of server is prepared, started, asked and stopped."""

    @property
    def name(self) -> str:
        """Name in the state folder and on the command line."""

    @property
    def stop_signal(self) -> signal.Signals:
        """The signal that ends it in order, without waiting for its clients."""

    @property
    def purge_signal(self) -> signal.Signals:
        """The signal that ends it at once when its data is not kept."""

    @property
    def stop_limit_s(self) -> float:
        """How long an orderly end may take before it is killed."""

    def user(self) -> User | None:
        """Whom to run it as; None for the user of this process."""

    def find(self, *, packaged: bool, folder: Path | None) -> Binary:
        """The program to run; one that fits the data in `folder` when there is some."""

    def prepare(self, state: ServerState, say: Callable[[str], None]) -> None:
        """Write configuration and, the first time, the data folder with its password.

        Called before every start, when no process of this server is left.
        """

    def command(self, state: ServerState) -> Sequence[str | Path]:
        """The command line; carries no secret, since others can see it."""

    def settings(self, state: ServerState) -> BaseSettings:
        """Address and password as the rest of the house takes them."""

    def ping(self, state: ServerState) -> None:
        """Log in and ask one question; raise StoreUnavailableError unless it is answered."""


def folder_of(state: ServerState) -> Path:
    """The server's own folder."""
    return Path(state.data)


def log_of(state: ServerState) -> Path:
    """What the server printed."""
    return folder_of(state) / "log"
