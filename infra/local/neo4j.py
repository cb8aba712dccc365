"""Neo4j Community 5.26 LTS with authentication, Bolt only, on the loopback interface."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import SecretStr

from graph_features.errors import StoreUnavailableError
from graph_features.settings import Neo4jSettings
from infra.local.base import folder_of
from infra.local.binaries import Binary, find_java
from infra.local.jars import VERSION, cache_folder, classpath, fetch
from infra.local.ports import HOST
from infra.local.state import ServerState, write_private
from infra.local.users import User

USER = "neo4j"
DATABASE = "neo4j"
MAIN_CLASS = "org.neo4j.server.CommunityEntryPoint"
HEAP_MB = 1024
PAGE_CACHE_MB = 384
HASH_ROUNDS = 1024
JAVA_WARNS_UNSAFE = 24  # the first version that warns of it, and that takes the option against the warning

# Neo4j's own launcher opens these to its off-heap memory and index code.
OPENED = ("java.nio", "java.io", "sun.nio.ch", "java.util.concurrent")


@dataclass(frozen=True, kw_only=True)
class Neo4jServer:
    """One Neo4j in one Java process, run from the jars of the lock file.

    `plugins` is a folder of further jars, whose procedures it offers; what those need lies in its folder `lib`.
    `options` are lines of neo4j.conf that win over ours.
    """

    plugins: Path | None = None
    heap_mb: int = HEAP_MB
    options: Mapping[str, str] = field(default_factory=dict)

    name: ClassVar[str] = "neo4j"
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    purge_signal: ClassVar[signal.Signals] = signal.SIGKILL
    stop_limit_s: ClassVar[float] = 60.0

    def user(self) -> User | None:
        """Neo4j runs as whoever starts it: the jars lie in that user's cache."""
        return None

    def find(self, *, packaged: bool, folder: Path | None) -> Binary:  # noqa: ARG002 - the protocol's, for PostgreSQL
        """See Server.find; Neo4j's own version is fixed by the lock file, only the Java runtime is looked for."""
        return find_java(packaged=packaged)

    def prepare(self, state: ServerState, say: Callable[[str], None]) -> None:
        """Fetch the jars, write neo4j.conf and, before the first start, the password."""
        fetch(say)
        folder = folder_of(state)
        (folder / "conf").mkdir(mode=0o700, exist_ok=True)
        write_private(folder / "conf" / "neo4j.conf", self._configuration(state))
        if not (folder / "data" / "databases").exists():
            credentials = folder / "data" / "dbms" / "auth.ini"
            credentials.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(credentials, initial_credentials(state.password))

    def command(self, state: ServerState) -> Sequence[str | Path]:
        """See Server.command."""
        folder = folder_of(state)
        major = int(state.version.split(".")[0])
        options = [f"-Xms{self.heap_mb // 3}m", f"-Xmx{self.heap_mb}m"]
        options += ["-XX:+UseParallelGC", "-XX:+ExitOnOutOfMemoryError"]
        options += [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in OPENED]
        options += ["--enable-native-access=ALL-UNNAMED", "-Dlog4j2.disable.jmx=true", "-Dfile.encoding=UTF-8"]
        if major >= JAVA_WARNS_UNSAFE:
            options.append("--sun-misc-unsafe-memory-access=allow")
        jars = classpath()
        if self.plugins is None:
            options += _class_archive(state)  # it is made for one classpath
        else:
            jars = os.pathsep.join((jars, str(self.plugins / "*"), str(self.plugins / "lib" / "*")))
        homes = [f"--home-dir={folder}", f"--config-dir={folder / 'conf'}"]
        return [state.binary, *options, "-cp", jars, MAIN_CLASS, *homes]

    def settings(self, state: ServerState) -> Neo4jSettings:
        """The one database of the community edition."""
        return Neo4jSettings(
            uri=f"bolt://{HOST}:{state.port}",
            user=USER,
            password=SecretStr(state.password),
            database=DATABASE,
            timeout_s=30.0,
        )

    def ping(self, state: ServerState) -> None:
        """RETURN 1 over Bolt: the database is online, not only the port open."""
        import neo4j
        from neo4j.exceptions import DriverError, Neo4jError

        uri, auth = f"bolt://{HOST}:{state.port}", (USER, state.password)
        try:
            with neo4j.GraphDatabase.driver(
                uri, auth=auth, connection_timeout=5.0, max_transaction_retry_time=0
            ) as driver:
                driver.execute_query("RETURN 1", database_=DATABASE)
        except (DriverError, Neo4jError, OSError) as error:
            raise StoreUnavailableError(f"Neo4j {VERSION} on port {state.port} does not answer: {error}") from error

    def _configuration(self, state: ServerState) -> str:
        settings = {
            "server.default_listen_address": HOST,
            "server.bolt.listen_address": f"{HOST}:{state.port}",
            "server.bolt.advertised_address": f"{HOST}:{state.port}",
            "server.http.enabled": "false",
            "server.https.enabled": "false",
            "dbms.security.auth_enabled": "true",
            "dbms.usage_report.enabled": "false",
            "server.memory.pagecache.size": f"{PAGE_CACHE_MB}m",
            # Half a gigabyte of empty log files otherwise, for every database.
            "db.tx_log.preallocate": "false",
            "db.tx_log.rotation.retention_policy": "keep_none",
            "db.tx_log.rotation.size": "64m",
            # Nobody is waited for at the end: it stops in half a second instead of ten.
            "internal.dbms.bolt.netty_server_shutdown_quiet_period": "0",
        }
        if self.plugins is not None:
            settings["server.directories.plugins"] = str(self.plugins)
        return "".join(f"{name}={value}\n" for name, value in {**settings, **self.options}.items())


def _class_archive(state: ServerState) -> list[str]:
    """Parsed classes kept from the first orderly end on: halves the time and the work of every later start.

    Java itself checks that such an archive is whole and fits its version and the jars, and goes on without it if not.
    """
    base = Path(state.binary).parent.parent / "lib" / "server" / "classes.jsa"
    if not base.exists():  # it adds to Java's own archive, which small runtimes come without
        return []
    archive = cache_folder() / f"classes-{state.version}.jsa"
    return [f"-XX:{'SharedArchiveFile' if archive.exists() else 'ArchiveClassesAtExit'}={archive}"]


def initial_credentials(password: str) -> str:
    """The line that `neo4j-admin dbms set-initial-password` leaves for the first start: salted, iterated SHA-256.

    Written here because the tool takes the password on its command line, where every user of the machine can read
    it, and takes a Java start of two seconds. The format is that of the pinned version.
    """
    salt = secrets.token_bytes(32)
    digest = salt + os.fsencode(password)
    for _ in range(HASH_ROUNDS):
        digest = hashlib.sha256(digest).digest()
    return f"{USER}:SHA-256,{digest.hex()},{salt.hex()},{HASH_ROUNDS}:\n"
