"""What Feast's own universal test suite runs against: FULL_REPO_CONFIGS_MODULE names this module (see run.py).

It is imported by Feast's tests, from a checkout of Feast's repository, and by nothing else.
"""

from __future__ import annotations

import json
import os

from tests.universal.feature_repos import integration_test_repo_config as configs  # type: ignore[import-not-found]
from tests.universal.feature_repos.universal.data_sources.file import (  # type: ignore[import-not-found]
    FileDataSourceCreator,
)

# Under names that Feast's tests ask for, so that those of one store alone run too.
AVAILABLE_ONLINE_STORES = {os.environ["UNIVERSAL_NAME"]: (json.loads(os.environ["UNIVERSAL_ONLINE_STORE"]), None)}
AVAILABLE_OFFLINE_STORES = [("local", FileDataSourceCreator)]


class RepoConfig(configs.IntegrationTestRepoConfig):  # type: ignore[misc]
    """Feast's configuration of a test with the compute engine that belongs to the store."""

    def __init__(self, **values: object) -> None:
        engine = os.environ["UNIVERSAL_BATCH_ENGINE"]
        super().__init__(**{"batch_engine": engine if engine == "local" else {"type": engine}, **values})


configs.IntegrationTestRepoConfig = RepoConfig
