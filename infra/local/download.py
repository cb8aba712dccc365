"""Downloads by Maven coordinate for jars.py, over connections that are kept.

jgo knows the repositories, the layout and the user's mirrors. Its own download opens a connection per file and reads
the certificates for each, which costs more than the transfer does; the checksum that it asks for beside each file is
weaker than the lock file's.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import requests
from jgo.config import GlobalSettings
from jgo.maven import MavenContext, PythonResolver
from requests.adapters import HTTPAdapter
from urllib3 import Retry

TIMEOUT_S = 60
CHUNK_BYTES = 1 << 18


def maven_context(staging: Path, connections: int) -> MavenContext:
    """jgo's view of Maven, downloading into `staging`, which is emptied first: no half file is ever taken for a whole.

    Repositories of the user's own jgo configuration (a company mirror) are asked first.
    """
    shutil.rmtree(staging, ignore_errors=True)
    remotes = {**GlobalSettings.load().repositories, **MavenContext().remote_repos}
    return MavenContext(resolver=PooledResolver(connections), repo_cache=staging, remote_repos=remotes)


class PooledResolver(PythonResolver):
    """jgo's resolver with its downloads over one session."""

    def __init__(self, connections: int) -> None:
        super().__init__()
        retry = Retry(total=3, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
        self._session = requests.Session()
        self._session.mount("https://", HTTPAdapter(pool_maxsize=connections, max_retries=retry))

    def download(self, artifact: Any) -> Path:
        """Fetch one artifact from the first repository that has it; raise RuntimeError when none does."""
        target = Path(artifact.cached_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for repository in artifact.context.remote_repos.values():
            url = f"{repository}/{artifact.component.path_prefix.as_posix()}/{artifact.filename}"
            with self._session.get(url, stream=True, timeout=TIMEOUT_S) as response:
                if response.status_code == requests.codes.not_found:
                    continue
                response.raise_for_status()
                with target.open("wb") as file:
                    for chunk in response.iter_content(CHUNK_BYTES):
                        file.write(chunk)
                return target
        raise RuntimeError(f"none of {len(artifact.context.remote_repos)} repositories has it")
