"""Where a server keeps its files when it runs as another user than the caller."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from graph_features.errors import ServiceError
from infra.local.users import User, can_reach

SHARED_PARENTS = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108 - the folder made there is random, mode 0700


def make_folder(services: Path, name: str, user: User | None) -> Path:
    """Make the folder of one server, owned by who runs it and readable by nobody else.

    An ordinary user's lies in the state folder. The state folder itself is closed to the user whom root drops to:
    then it lies beside the state folder or, where the home cannot be reached at all (a checkout under /root), in
    /var/lib or /var/tmp.
    """
    if user is None:
        folder = services / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
    for folder in _candidates(services, name):
        try:
            folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        os.chown(folder, user.uid, user.gid)
        if can_reach(folder, user):
            return folder
        folder.rmdir()
    raise ServiceError(f"no folder for {name} that user {user.name!r} can reach: set RINGFENCE_HOME to one that it can")


def _candidates(services: Path, name: str) -> Iterator[Path]:
    yield services.parent / f"services-{name}"
    for parent in SHARED_PARENTS:
        yield parent / "ringfence" / f"{name}-{secrets.token_hex(6)}"


def remove_folder(folder: Path) -> None:
    """Remove a server's folder, and the parent that was made for it in a shared place when it is empty now."""
    shutil.rmtree(folder, ignore_errors=False)
    if folder.parent.parent in SHARED_PARENTS and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
