"""The parts of the local servers that need no server."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

import infra
from graph_features.errors import ServiceError
from graph_features.settings import Neo4jSettings, PostgresSettings, RedisSettings, export_services_environment
from infra.local import environment, jars, ports, process, servers
from infra.local.base import log_of
from infra.local.neo4j import HASH_ROUNDS, initial_credentials
from infra.local.postgres import SETTINGS
from infra.local.process import ProcessId
from infra.local.state import ServerState, StateFolder, write_private

LIMIT_S = 30.0


def make_state(folder: Path, **changes: object) -> ServerState:
    """A server's state with nothing behind it."""
    values: dict[str, object] = {
        "name": "redis",
        "binary": "/nowhere/redis-server",
        "origin": "installed",
        "version": "7.0",
        "port": 6379,
        "password": "secret",
        "data": str(folder),
        "user": None,
        "durable": True,
        "process": ProcessId(pid=1, started="then"),
    }
    return ServerState(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[[str], ProcessId]]:
    """spawn(script): start a shell script apart from this process; it is ended after the test."""
    started: list[ProcessId] = []

    def make(script: str) -> ProcessId:
        command = ["/bin/sh", "-c", script]
        started.append(process.spawn(command, folder=tmp_path, log=tmp_path / "log", user=None))
        return started[-1]

    yield make
    for one in started:
        process.stop(one, first=signal.SIGKILL, limit_s=0)


def wait_for_line(log: Path, line: str) -> None:
    """Wait until a script has said that it is ready."""
    deadline = time.monotonic() + LIMIT_S
    while not log.exists() or line not in log.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_spawned_process_is_no_child(spawn: Callable[[str], ProcessId]) -> None:
    """A server outlives its starter and never becomes its zombie."""
    server = spawn("sleep 600")
    assert process.is_alive(server)
    with pytest.raises(ChildProcessError):
        os.waitpid(server.pid, 0)


def test_stop_ends_a_process_that_ignores_the_signal(tmp_path: Path, spawn: Callable[[str], ProcessId]) -> None:
    """What does not end by the first signal is killed after the limit, with its children."""
    server = spawn("trap '' TERM; sleep 600 & echo $! >child; echo ready; while :; do sleep 0.1; done")
    wait_for_line(tmp_path / "log", "ready")
    child = process.identify(int((tmp_path / "child").read_text(encoding="ascii")))
    assert process.is_alive(child)
    process.stop(server, first=signal.SIGTERM, limit_s=0.3)
    assert not process.is_alive(server)
    assert not process.is_alive(child)


def test_stop_lets_a_process_end_in_order(tmp_path: Path, spawn: Callable[[str], ProcessId]) -> None:
    """A process that heeds the first signal is not killed before it has finished."""
    server = spawn("trap 'sleep 0.3; echo finished; exit' TERM; echo ready; while :; do sleep 0.05; done")
    wait_for_line(tmp_path / "log", "ready")
    process.stop(server, first=signal.SIGTERM, limit_s=LIMIT_S)
    assert "finished" in (tmp_path / "log").read_text(encoding="utf-8")


def test_a_pid_alone_is_no_identity(spawn: Callable[[str], ProcessId]) -> None:
    """A process that started at another time than recorded is left alone."""
    server = spawn("sleep 600")
    process.stop(ProcessId(pid=server.pid, started="another time"), first=signal.SIGKILL, limit_s=0)
    assert process.is_alive(server)


def test_a_zombie_is_dead() -> None:
    """A process that ended and was not waited for does not count as running."""
    with subprocess.Popen(["true"]) as ended:
        deadline = time.monotonic() + LIMIT_S
        while process.identify(ended.pid) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_process_with_threads_left_lives(tmp_path: Path) -> None:
    """A process whose first thread has ended while others go on, as a dying server's do, is not dead yet."""
    script = (
        "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print('ready', flush=True); ctypes.CDLL(None).pthread_exit(None)"
    )
    server = process.spawn([sys.executable, "-c", script], folder=tmp_path, log=tmp_path / "log", user=None)
    try:
        wait_for_line(tmp_path / "log", "ready")
        deadline = time.monotonic() + LIMIT_S
        while psutil.Process(server.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.is_alive(server)
    finally:
        process.stop(server, first=signal.SIGKILL, limit_s=0)
    assert not process.is_alive(server)


def test_leftovers_are_found_by_program_and_folder(tmp_path: Path, spawn: Callable[[str], ProcessId]) -> None:
    """Only processes of that program inside that folder are taken for a server's."""
    server = spawn("exec sleep 600")
    wait_for_exec(server)
    program = Path(f"/proc/{server.pid}/exe").resolve() if Path("/proc").exists() else Path("/bin/sleep")
    assert process.leftovers(program, tmp_path) == [server]
    assert process.leftovers(program, tmp_path / "elsewhere") == []
    assert process.leftovers(Path(sys.executable).resolve(), tmp_path) == []


def wait_for_exec(server: ProcessId) -> None:
    """Wait until the shell has become the program."""
    deadline = time.monotonic() + LIMIT_S
    while psutil.Process(server.pid).name() != "sleep":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_free_ports_can_be_bound() -> None:
    """A free port is free, and stays out of the range that systems give to outgoing connections."""
    found = ports.free_port()
    assert ports.is_free(found)
    assert ports.FIRST <= found < ports.LAST


def test_state_is_kept_and_private(tmp_path: Path) -> None:
    """What is stored is read back equal, by its owner alone, and a printed state shows no password."""
    folder = StateFolder(tmp_path)
    folder.create()
    state = make_state(tmp_path)
    folder.put(state)
    folder.put(make_state(tmp_path, name="neo4j", process=None))
    assert StateFolder(tmp_path).read() == {"redis": state, "neo4j": make_state(tmp_path, name="neo4j", process=None)}
    assert stat.S_IMODE((folder.path / "state.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert "secret" not in repr(state)


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"format": 0, "servers": {}}', "[]", '{"format": 1, "servers": {"redis": {"password": "secret"}}}'],
)
def test_damaged_state_is_named(tmp_path: Path, content: str) -> None:
    """A state file that cannot be read is an error that names it, never an empty state."""
    folder = StateFolder(tmp_path)
    folder.create()
    (folder.path / "state.json").write_text(content, encoding="utf-8")
    with pytest.raises(ServiceError, match=r"state\.json") as raised:
        folder.read()
    assert "secret" not in str(raised.value)


def test_private_files_replace_open_ones(tmp_path: Path) -> None:
    """A file that others could read before is closed to them after it is written."""
    file = tmp_path / "env"
    file.write_text("old", encoding="utf-8")
    file.chmod(0o644)
    write_private(file, "new")
    assert file.read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_lock_is_held_by_one_process(tmp_path: Path) -> None:
    """A second process waits, says so, and goes on when the first is done, though the folder was removed meanwhile."""
    script = (
        "import sys; from pathlib import Path; from infra.local.state import StateFolder\n"
        f"with StateFolder(Path({str(tmp_path)!r})).locked(lambda: print('waits', flush=True)):\n"
        f"    print((Path({str(tmp_path)!r}) / 'services' / 'lock').exists())\n"
    )
    folder = StateFolder(tmp_path)
    with folder.locked(lambda: None):
        second = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        assert second.stdout.readline() == "waits\n"
        (folder.path / "lock").unlink()
        folder.path.rmdir()
    assert second.communicate(timeout=LIMIT_S)[0].splitlines()[-1] == "True"


def test_environment_reaches_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file says is what the settings of an entry point read, secrets with quotes and blanks included."""
    secret = SecretStr('it\'s $HOME "quoted"')
    given_settings = [PostgresSettings(port=1234, password=secret), RedisSettings(db=3, tls=True), Neo4jSettings()]
    values = environment.environment(tmp_path, given_settings)
    for name in list(os.environ):
        if name.startswith(("RINGFENCE_", "FEAST_", "MLFLOW_")):
            monkeypatch.delenv(name)
    for name in values:
        monkeypatch.setenv(name, "")  # restored after the test, whatever is put there in it
        monkeypatch.delenv(name)
    file = StateFolder(tmp_path).path / "env"
    file.parent.mkdir()
    file.write_text(environment.lines(values), encoding="utf-8")
    monkeypatch.setenv("RINGFENCE_PROFILE", "services")
    monkeypatch.setenv("RINGFENCE_HOME", str(tmp_path))
    export_services_environment()
    assert [PostgresSettings(), RedisSettings(), Neo4jSettings()] == given_settings


NAMES = st.from_regex(r"[A-Z_]{1,10}", fullmatch=True)
PRINTABLE = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]))


@given(st.dictionaries(NAMES, PRINTABLE))
def test_environment_lines_are_shell(values: dict[str, str]) -> None:
    """Any value survives the quoting."""
    read = dict(shlex.split(line)[1].split("=", 1) for line in environment.lines(values).splitlines())
    assert read == values


def test_lock_file_names_the_whole_classpath() -> None:
    """Every line is a coordinate with a sha256, no file name comes twice, and no host is named."""
    locked = jars.locked_jars()
    assert len({jar.file_name for jar in locked}) == len(locked) > 200
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in locked)
    assert jars.ROOT in {jar.coordinate for jar in locked}
    assert all(jar.version == jars.VERSION for jar in locked if jar.file_name.startswith("neo4j-kernel"))
    text = Path(jars.__file__).with_name(jars.LOCK_FILE).read_text(encoding="ascii")
    assert "http" not in text.replace("netty-codec-http:", "").replace("jetty-http", "").replace("http2", "")


@pytest.fixture
def fake_jars() -> dict[jars.Jar, bytes]:
    """Three small files under coordinates that nobody publishes."""
    contents = {name: f"content of {name}".encode() for name in ("one", "two", "three")}
    return {
        jars.Jar(
            group="test.ringfence",
            artifact=name,
            version="1.0",
            classifier="linux" if name == "two" else "",
            sha256=hashlib.sha256(content).hexdigest(),
        ): content
        for name, content in contents.items()
    }


def publish(repository: Path, contents: dict[jars.Jar, bytes]) -> None:
    """Lay files out as a Maven repository does."""
    for jar, content in contents.items():
        path = repository.joinpath(*jar.group.split("."), jar.artifact, jar.version, jar.file_name)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)


def test_jars_of_the_own_repository_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_jars: dict[jars.Jar, bytes]
) -> None:
    """Files of the user's Maven repository need no download, and a damaged file in the cache is made good."""
    monkeypatch.setenv("M2_REPO", str(tmp_path / "own"))
    publish(tmp_path / "own", fake_jars)
    cache = tmp_path / "cache"
    cache.mkdir()
    said: list[str] = []
    jars.fetch_into(cache, list(fake_jars), said.append)
    (cache / "one-1.0.jar").write_bytes(b"damaged")
    jars.fetch_into(cache, list(fake_jars), said.append)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == {
        jar.file_name: content for jar, content in fake_jars.items()
    }
    assert said[0].startswith("fetching 3 of 3")
    assert said[1].startswith("fetching 1 of 3")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a Maven repository on this machine that jgo's configuration names, and none of one's own."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        configuration = tmp_path / "jgo.conf"
        configuration.write_text(f"[repositories]\nmirror = http://127.0.0.1:{server.server_port}\n", encoding="ascii")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(configuration))
        monkeypatch.setenv("M2_REPO", str(tmp_path / "nothing"))
        yield folder
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def test_jars_are_downloaded_from_a_mirror(tmp_path: Path, mirror: Path, fake_jars: dict[jars.Jar, bytes]) -> None:
    """Missing files come from the repository that the user's jgo configuration names; no half file stays behind."""
    publish(mirror, fake_jars)
    cache = tmp_path / "cache"
    cache.mkdir()
    jars.fetch_into(cache, list(fake_jars), lambda _: None)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == {
        jar.file_name: content for jar, content in fake_jars.items()
    }
    assert not (tmp_path / "cache.partial").exists()


def test_a_wrong_jar_is_refused(tmp_path: Path, mirror: Path, fake_jars: dict[jars.Jar, bytes]) -> None:
    """A file with another checksum than the lock file's never reaches the classpath; the error names it."""
    publish(mirror, {jar: content + b"!" for jar, content in fake_jars.items()})
    cache = tmp_path / "cache"
    cache.mkdir()
    with pytest.raises(ServiceError, match=r"test.ringfence:(one|two|three):1.0.*sha256 is [0-9a-f]{64}, expected"):
        jars.fetch_into(cache, list(fake_jars), lambda _: None)
    assert not list(cache.iterdir())


def test_initial_credentials_hold_no_password() -> None:
    """Neo4j's credentials line is salted, iterated SHA-256 of the password, different each time."""
    line = initial_credentials("a password")
    user, rest = line.strip().split(":", 1)
    algorithm, digest, salt_and_rounds = rest.rstrip(":").split(",", 2)
    salt, rounds = salt_and_rounds.split(",")
    expected = bytes.fromhex(salt) + b"a password"
    for _ in range(HASH_ROUNDS):
        expected = hashlib.sha256(expected).digest()
    assert (user, algorithm, digest, int(rounds)) == ("neo4j", "SHA-256", expected.hex(), HASH_ROUNDS)
    assert initial_credentials("a password") != line


def test_unknown_server_names_are_refused(tmp_path: Path) -> None:
    """A name that is no server's is an error that lists those that are, before anything is made."""
    with pytest.raises(ServiceError, match="'mysql': expected some of postgres, redis, neo4j"):
        servers.up(tmp_path, only=("mysql",))
    assert not list(tmp_path.iterdir())


def test_importing_the_commands_is_cheap() -> None:
    """`ringfence --help` imports the sub-app, so it loads no driver, no Feast, no MLflow."""
    script = "import sys, infra.cli_services; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"psycopg", "redis", "neo4j", "feast", "mlflow", "pydantic", "psutil"} & set(loaded)


def test_log_lies_in_the_servers_folder(tmp_path: Path) -> None:
    """What a server prints is found where messages say."""
    assert log_of(make_state(tmp_path)) == tmp_path / "log"


COMPOSE = Path(next(iter(infra.__path__))) / "compose.yaml"


def test_compose_is_the_same_set() -> None:
    """Three servers with pinned images and health checks, open to this machine only, every password demanded."""
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    assert set(services) == set(servers.ALL)
    for name, service in services.items():
        assert re.fullmatch(rf"{name}:\d+\.\d+[\w.-]*", service["image"])
        assert service["healthcheck"]["test"]
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"])
        demanded = re.findall(r"\$\{(\w+):\?", str(service["environment"]))
        assert set(demanded) == {f"RINGFENCE_{name.upper()}_PASSWORD"}
    assert services["neo4j"]["image"] == f"neo4j:{jars.VERSION}-community"


def test_compose_tunes_postgres_alike() -> None:
    """PostgreSQL in Docker runs with the settings of the local one, where they are not about its place."""
    command = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["postgres"]["command"]
    tuned = dict(part.split("=", 1) for part in command if "=" in part)
    assert tuned.items() <= SETTINGS.items()
    assert {"shared_buffers", "max_wal_size", "timezone"} <= set(tuned)


def test_compose_mounts_exist() -> None:
    """What compose.yaml mounts from the repository is there."""
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"].values()
    mounts = [volume.split(":")[0] for service in services for volume in service["volumes"]]
    assert [mount for mount in mounts if mount.startswith(".")] == ["./compose/postgres.sql"]
    assert (COMPOSE.parent / "compose" / "postgres.sql").is_file()
