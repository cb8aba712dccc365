"""Values that are worked out once, also when several threads ask at the same time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import RLock
from typing import Any, TypeVar

T = TypeVar("T")


class Memo:
    """Keeps values by key. Of threads that ask for one at once, one builds it and the others wait.

    Values may be built from others, but not in a circle.
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}
        self._locks: dict[Hashable, RLock] = {}

    def get(self, key: Hashable, build: Callable[[], T]) -> T:
        """Return the value kept under `key`, building it the first time."""
        if key not in self._values:
            with self._locks.setdefault(key, RLock()):
                if key not in self._values:
                    self._values[key] = build()
        return self._values[key]  # type: ignore[no-any-return]


class LastMemo:
    """A memo of the key asked for last: the others are forgotten, but stay with the threads that still use them."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._last: tuple[Hashable, Memo] | None = None

    def of(self, key: Hashable) -> Memo:
        """Return the memo of `key`, an empty one unless it was asked for last."""
        with self._lock:
            if self._last is None or self._last[0] != key:
                self._last = (key, Memo())
            return self._last[1]
