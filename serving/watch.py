"""Notices the death of workers at once, idle ones too: their sentinels become readable when they end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import cast


class Watcher:
    """A thread that waits on many workers' sentinels and calls back, once each, when one of them ends."""

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}
        self._wake_read, self._wake_write = os.pipe()
        self._closing = False
        self._open = True
        self._thread = threading.Thread(target=self._run, name=f"{name}-watcher", daemon=True)
        self._thread.start()

    def watch(self, sentinel: int, ended: Callable[[], None]) -> None:
        """Call `ended` when the process of this sentinel ends."""
        # A descriptor of our own: that of the process object is closed, and its number reused, whenever it is dropped.
        with self._lock:
            if self._open:
                self._watched[os.dup(sentinel)] = ended
                self._wake()

    def close(self) -> None:
        """Stop watching; may be called again."""
        self._closing = True
        with self._lock:
            if self._open:
                self._wake()
        self._thread.join(timeout=5)

    def _wake(self) -> None:
        os.write(self._wake_write, b"w")

    def _run(self) -> None:
        while not self._closing:
            with self._lock:
                descriptors = list(self._watched)
            for ready in cast(list[int], wait([self._wake_read, *descriptors])):
                if ready == self._wake_read:
                    os.read(self._wake_read, 4096)
                    continue
                with self._lock:
                    ended = self._watched.pop(ready)
                os.close(ready)
                ended()
        with self._lock:
            self._open = False
            for descriptor in (*self._watched, self._wake_read, self._wake_write):
                os.close(descriptor)
