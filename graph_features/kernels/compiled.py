"""One way to compile a kernel: cached on disk, without the interpreter lock, exact (no fast-math)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile `function` on its first call; where no cache folder can be written, once per process."""
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # no locator for the cache: a read-only install without a home
        return cast(F, numba.njit(nogil=True)(function))
