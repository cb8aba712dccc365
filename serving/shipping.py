"""The handler of the worker that takes journals of decisions to their database."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from graph_features.settings import PlatformSettings
from serving.decisions import DecisionLog, open_engine
from serving.segments import read_segment

NICENESS = 5
"""Scoring comes first: shipping takes what the cores have left."""


class DecisionShipper:
    """Stores whole segments. Built without asking the database, which may be away."""

    def __init__(self, platform: PlatformSettings, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._log = DecisionLog(open_engine(platform))
        self._ready = False

    def ship(self, segment: str) -> int:
        """Store the records of a segment once, however often it is called; return how many were new."""
        if not self._ready:
            self._log.create()
            self._ready = True
        path = Path(segment)
        return self._log.store_segment(path.name, list(read_segment(path)))

    def lower_priority(self) -> None:
        """Give way to the workers that score."""
        os.nice(NICENESS)

    def close(self) -> None:
        """Let go of the connections."""
        self._log.close()
