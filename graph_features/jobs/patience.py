"""Waiting for a store that went away amid a job: restarts take seconds, and the work before them is worth the wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from graph_features.errors import JobCancelledError, StoreUnavailableError

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0


def insist(action: Callable[[], T], *, patience_s: float, stop: threading.Event | None = None) -> T:
    """Return what `action` returns, trying again while a store is away, for `patience_s` at most.

    Raises StoreUnavailableError when patience ends and JobCancelledError when `stop` is set meanwhile.
    """
    give_up = time.monotonic() + patience_s
    wait_s = FIRST_WAIT_S
    while True:
        try:
            return action()
        except StoreUnavailableError as error:
            if time.monotonic() + wait_s > give_up:
                raise
            log.info("waiting for a store: %s", error)
        if stop is not None and stop.wait(wait_s):
            raise JobCancelledError("asked to stop while a store was away")
        if stop is None:
            time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
