"""Values that are worked out once, also when several threads ask at the same time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from itertools import count
from threading import RLock
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

_MISSING: Any = object()


class Memo:
    """Keeps values by key. Of threads that ask for one at once, one builds it and the others wait.

    Values may be built from others, but not in a circle.
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}
        self._locks: dict[Hashable, RLock] = {}
        self._asked = count()
        self._last_asked: dict[Hashable, int] = {}

    def get(self, key: Hashable, build: Callable[[], T]) -> T:
        """Return the value kept under `key`, building it the first time."""
        value = self._values.get(key, _MISSING)
        if value is _MISSING:
            with self._locks.setdefault(key, RLock()):
                value = self._values.get(key, _MISSING)
                if value is _MISSING:
                    value = self._values[key] = build()
        self._last_asked[key] = next(self._asked)
        return value  # type: ignore[no-any-return]

    def trim(self, most_bytes: int) -> None:
        """Forget values, those first that were not asked for longest, until the arrays of the rest fit `most_bytes`.

        What somebody still uses stays with them. One that is asked for again is built again.
        """
        kept = sorted(self._values, key=lambda key: self._last_asked.get(key, 0))
        while kept and _array_bytes([self._values.get(key) for key in kept]) > most_bytes:
            self._values.pop(kept.pop(0), None)


def _array_bytes(values: list[Any]) -> int:
    """Bytes of the arrays in `values`, in the tuples and dataclasses among them too; shared memory counts once."""
    sizes: dict[int, int] = {}
    while values:
        value = values.pop()
        if isinstance(value, np.ndarray):
            while isinstance(value.base, np.ndarray):
                value = value.base
            sizes[id(value)] = value.nbytes
        elif isinstance(value, tuple):
            values.extend(value)
        elif is_dataclass(value):
            names = {field.name for field in fields(value)} | set(vars(value))  # cached properties, too
            values.extend(getattr(value, name) for name in names)
    return sum(sizes.values())


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
