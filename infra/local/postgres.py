"""PostgreSQL with scram passwords, on the loopback interface, with a database for Ringfence and one for MLflow."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import SecretStr

from graph_features.errors import StoreUnavailableError
from graph_features.settings import PostgresSettings
from infra.local import process
from infra.local.base import folder_of
from infra.local.binaries import INSTALLED, Binary, find_postgres
from infra.local.ports import HOST
from infra.local.state import ServerState
from infra.local.users import User, can_reach, find_user, unprivileged_user

ROLE = "ringfence"
DATABASE = "ringfence"
MLFLOW_DATABASE = "mlflow"

# For one developer's machine: room for bulk loads, and no more memory than a laptop can spare.
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "256MB",
    "effective_cache_size": "2GB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "password_encryption": "scram-sha-256",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresServer:
    """One PostgreSQL cluster; as root it runs as an unprivileged user."""

    name = "postgres"
    stop_signal = signal.SIGINT  # its "fast" shutdown; SIGTERM would wait until every client has gone
    purge_signal = signal.SIGQUIT  # "immediate", which leaves no shared memory behind
    stop_limit_s = 60.0

    def user(self) -> User | None:
        """PostgreSQL refuses to run as root."""
        return unprivileged_user()

    def find(self, *, packaged: bool, folder: Path | None) -> Binary:
        """See Server.find; a cluster is bound to the major version that made it."""
        version = folder / "cluster" / "PG_VERSION" if folder else None
        major = int(version.read_text(encoding="ascii")) if version and version.exists() else None
        return find_postgres(packaged=packaged, user=self.user(), major=major)

    def prepare(self, state: ServerState, say: Callable[[str], None]) -> None:
        """Make the cluster, its role and its databases, all before anyone can connect; a half-made one is made anew."""
        folder = folder_of(state)
        if (folder / "cluster").exists():
            # Its process is known to be gone, while PostgreSQL goes by the pid alone and would take a zombie that
            # nobody reaps, or a new owner of that pid, for itself.
            (folder / "cluster" / "postmaster.pid").unlink(missing_ok=True)
            return
        say("creating a database cluster")
        user = find_user(state.user) if state.user else None
        fresh = folder / "cluster.new"
        if fresh.exists():
            shutil.rmtree(fresh)
        postgres = _program(state, user)
        initdb = postgres.parent / "initdb"
        # C sorts by bytes: the same order on every machine, and indexes that serve LIKE.
        options = ("--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
        # initdb insists on a password for scram. This one is thrown away: the superuser is never used over the network.
        password_file = _write_as(user, folder / "initdb.password", os.urandom(24).hex())
        try:
            process.run([initdb, "-D", fresh, f"--pwfile={password_file}", *options], folder=folder, user=user)
        finally:
            password_file.unlink()
        single = ("--single", "-D", fresh, "-c", "password_encryption=scram-sha-256", "-c", "fsync=off", "postgres")
        process.run([postgres, *single], folder=folder, user=user, stdin=_bootstrap_sql(state.password))
        fresh.rename(folder / "cluster")

    def command(self, state: ServerState) -> Sequence[str | Path]:
        """See Server.command."""
        user = find_user(state.user) if state.user else None
        settings = SETTINGS | ({} if state.durable else NOT_DURABLE) | {"port": str(state.port)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [_program(state, user), "-D", folder_of(state) / "cluster", *options]

    def settings(self, state: ServerState) -> PostgresSettings:
        """The Ringfence database, as a role that may create databases and nothing else beyond its own."""
        return PostgresSettings(
            host=HOST,
            port=state.port,
            user=ROLE,
            password=SecretStr(state.password),
            database=DATABASE,
            sslmode="disable",
            connect_timeout_s=10,
        )

    def ping(self, state: ServerState) -> None:
        """SELECT 1 after a scram login."""
        import psycopg

        try:
            with psycopg.connect(**self.settings(state).conninfo(), autocommit=True) as connection:  # type: ignore[arg-type]
                connection.execute("SELECT 1")
        except psycopg.Error as error:
            raise StoreUnavailableError(f"PostgreSQL on port {state.port} does not answer: {error}") from error


def _bootstrap_sql(password: str) -> str:
    # One statement a line: that is how single-user mode reads. The password is hexadecimal, so it needs no quoting.
    return (
        f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{password}';\n"
        f"CREATE DATABASE {DATABASE} OWNER {ROLE};\n"
        f"CREATE DATABASE {MLFLOW_DATABASE} OWNER {ROLE};\n"
    )


def _write_as(user: User | None, path: Path, text: str) -> Path:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        if user is not None:
            os.fchown(file.fileno(), user.uid, user.gid)
        file.write(text)
    return path


def _program(state: ServerState, user: User | None) -> Path:
    """The `postgres` to run: the found one, or a copy of the packaged one where `user` cannot reach it."""
    found = Path(state.binary)
    if user is None or state.origin == INSTALLED or can_reach(found, user):
        return found
    install = found.parent.parent
    package = install.parent
    programs = folder_of(state) / "programs"
    copied = programs / package.name / install.name
    if not copied.exists():
        # Libraries that the wheel brings lie beside the package, and the programs look for them there.
        for libraries in package.parent.glob(f"{package.name}.libs"):
            shutil.copytree(libraries, programs / libraries.name, dirs_exist_ok=True)
        partial = copied.with_name(f"{copied.name}.new")
        shutil.copytree(install, partial, symlinks=True, dirs_exist_ok=True)
        for path in (programs, *programs.rglob("*")):
            os.chown(path, user.uid, user.gid, follow_symlinks=False)
        partial.rename(copied)
    return copied / "bin" / found.name
