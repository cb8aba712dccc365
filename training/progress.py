"""How long work tells its caller where it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, float | None, str], None]
"""progress(done, total, what happens now); total is None where it is not known."""


def no_progress(done: float, total: float | None, text: str) -> None:
    """Progress for callers who do not care."""
