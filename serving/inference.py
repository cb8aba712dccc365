"""The handler of inference worker processes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from graph_features import backends
from graph_features.settings import PlatformSettings
from serving.scorer import ShardScorer


class InferenceWorker(ShardScorer):
    """A ShardScorer that opens its own connection to the online store.

    `environment` are the RINGFENCE_ variables of the server: the fork server may have been started under others.
    `answer_s` is how long the store is waited for: less than the time after which the worker itself counts as hung.
    """

    def __init__(self, platform: PlatformSettings, environment: Mapping[str, str], answer_s: float = math.inf) -> None:
        os.environ.update(environment)
        self._store = backends.open_online(platform, answer_s=answer_s)
        super().__init__(self._store)

    def close(self) -> None:
        """Close the connection."""
        self._store.close()


def own_environment() -> dict[str, str]:
    """The variables that settings are read from."""
    return {name: value for name, value in os.environ.items() if name.startswith("RINGFENCE_")}
