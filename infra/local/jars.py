"""Neo4j's jars: named with their checksums in a lock file, fetched once per user, never resolved anew."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from graph_features.errors import ServiceError
from infra.local.state import exclusive

if TYPE_CHECKING:
    from jgo.maven import MavenContext

VERSION = "5.26.30"
ROOT = f"org.neo4j:neo4j:{VERSION}"
LOCK_FILE = f"neo4j-{VERSION}.lock"
DOWNLOADS = 8
TRIES = 3
REPORT_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class Jar:
    """One file of the classpath."""

    group: str
    artifact: str
    version: str
    classifier: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Name in a repository and in the cache."""
        return "-".join(part for part in (self.artifact, self.version, self.classifier) if part) + ".jar"

    @property
    def coordinate(self) -> str:
        """group:artifact:version[:classifier]"""
        return ":".join(part for part in (self.group, self.artifact, self.version, self.classifier) if part)


def locked_jars() -> list[Jar]:
    """Every jar of the lock file."""
    return parse_lock(_lock_text())


def parse_lock(text: str) -> list[Jar]:
    """Every jar of a lock file's text: a coordinate and a checksum per line."""
    return [_parse(line) for line in text.splitlines() if line and not line.startswith("#")]


def _lock_text() -> str:
    return resources.files("infra.local").joinpath(LOCK_FILE).read_text(encoding="ascii")


def _parse(line: str) -> Jar:
    coordinate, sha256 = line.split()
    group, artifact, version, classifier = (*coordinate.split(":"), "")[:4]
    return Jar(group=group, artifact=artifact, version=version, classifier=classifier, sha256=sha256)


def cache_folder() -> Path:
    """Where the jars are kept: XDG_CACHE_HOME/ringfence, or ~/.cache/ringfence."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ringfence" / f"neo4j-{VERSION}"


def classpath() -> str:
    """The jars as `java -cp` takes them."""
    return str(cache_folder() / "*")


def fetch(say: Callable[[str], None]) -> None:
    """Make the cache complete: files of the user's own Maven repository first, then downloads; each checksum verified.

    Safe to interrupt and to run twice at once. `say` gets a line of progress now and then. Raises ServiceError naming
    the first file that could not be had.
    """
    folder = cache_folder()
    mark = folder / "complete"
    lock_digest = hashlib.sha256(_lock_text().encode("ascii")).hexdigest()
    if _is_complete(folder, mark, lock_digest):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder.with_name(f"{folder.name}.lock"), lambda: say("waiting for another download")):
        if _is_complete(folder, mark, lock_digest):
            return
        jars = locked_jars()
        wanted = {jar.file_name for jar in jars}
        for path in folder.iterdir():
            if path.name not in wanted:  # of another lock file, or Java's class archive of other jars
                path.unlink()
        fetch_into(folder, jars, say)
        mark.write_text(lock_digest, encoding="ascii")


def _is_complete(folder: Path, mark: Path, lock_digest: str) -> bool:
    if not mark.is_file() or mark.read_text(encoding="ascii") != lock_digest:
        return False
    present = set(os.listdir(folder))
    return all(jar.file_name in present for jar in locked_jars())


def fetch_into(folder: Path, jars: Sequence[Jar], say: Callable[[str], None]) -> None:
    """Have these jars in `folder`, each with its checksum; what lies there already and is right stays."""
    try:
        from infra.local.download import maven_context
    except ModuleNotFoundError as error:
        raise ServiceError(
            f"fetching Neo4j needs {error.name}: `pip install 'ringfence[services]'` brings it"
        ) from error
    missing = [jar for jar in jars if _sha256(folder / jar.file_name) != jar.sha256]
    if not missing:
        return
    staging = folder.with_name(f"{folder.name}.partial")
    context = maven_context(staging, DOWNLOADS)
    stopped = threading.Event()
    say(f"fetching {len(missing)} of {len(jars)} jars into {folder.name}")
    with ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="jars") as pool:
        tasks = [pool.submit(_fetch_one, jar, folder, context, stopped) for jar in missing]
        try:
            for done, task in enumerate(as_completed(tasks), start=1):
                task.result()
                if done % REPORT_EVERY == 0:
                    say(f"fetched {done} of {len(missing)} jars")
        except BaseException:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    shutil.rmtree(staging, ignore_errors=True)


def _fetch_one(jar: Jar, folder: Path, context: MavenContext, stopped: threading.Event) -> None:
    from jgo.constants import default_maven_repo

    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact(jar.classifier)
    own = default_maven_repo() / artifact.component.path_prefix / jar.file_name
    if _sha256(own) == jar.sha256:
        _keep(own, folder / jar.file_name)
        return
    problem = ""
    for _ in range(TRIES):
        if stopped.is_set():
            return
        try:
            path = Path(artifact.resolve())
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            problem = str(error)
            continue
        if (found := _sha256(path)) == jar.sha256:
            _keep(path, folder / jar.file_name)
            return
        path.unlink()
        problem = f"its sha256 is {found}, expected {jar.sha256}"
    raise ServiceError(f"{jar.coordinate} could not be fetched: {problem}")


def _keep(source: Path, target: Path) -> None:
    fresh = target.with_name(f"{target.name}.new")
    shutil.copyfile(source, fresh)
    fresh.replace(target)


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, PermissionError):
        return None
