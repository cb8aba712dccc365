"""A place for the servers of one benchmark."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def guarded_home() -> Iterator[Path]:
    """A home whose servers are stopped and removed at the end, also when this process is killed."""
    with TemporaryDirectory(prefix="ringfence-bench-") as folder:
        home = Path(folder)
        guard = subprocess.Popen(
            [sys.executable, "-m", "infra.local.guard", str(home)], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            yield home
        finally:
            guard.communicate()
