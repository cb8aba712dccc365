"""Who runs PostgreSQL, which refuses to run as root, and which folders that user can reach."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graph_features.errors import ServiceError

CANDIDATES = ("postgres", "nobody")


@dataclass(frozen=True, kw_only=True)
class User:
    """An existing account of this machine to drop privileges to."""

    name: str
    uid: int
    gid: int

    def popen_arguments(self) -> dict[str, Any]:
        """Arguments for subprocess that make the child run as this user and with this user's group only."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def find_user(name: str) -> User:
    """The account of this name; ServiceError when it does not exist."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ServiceError(f"there is no user {name!r} on this machine any more") from None
    return User(name=name, uid=entry.pw_uid, gid=entry.pw_gid)


def unprivileged_user() -> User | None:
    """The user to drop to when this process is root; None when it is an ordinary user already."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in CANDIDATES:
        if name in known and find_user(name).uid != 0:
            return find_user(name)
    raise ServiceError(
        f"PostgreSQL does not run as root and none of the users {', '.join(CANDIDATES)} exists: "
        "add one of them, or start the servers as an ordinary user"
    )


def can_reach(path: Path, user: User | None) -> bool:
    """Whether `user` (None: this process) can enter a folder or execute a file, asked of the system itself.

    Mode bits along the path would not tell all: access lists and security modules have a say too.
    """
    done = subprocess.run(
        ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)],
        cwd="/",
        check=False,
        **(user.popen_arguments() if user else {}),
    )
    return done.returncode == 0
