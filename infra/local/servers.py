"""Start, stop and look at the local servers of one home: `up`, `down`, `status`."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from graph_features.errors import RingfenceError, ServiceError, StoreUnavailableError
from graph_features.settings import Neo4jSettings, PostgresSettings, RedisSettings, services_env_file
from infra.local import environment, ports, process
from infra.local.base import Progress, Server, folder_of, log_of, no_progress
from infra.local.binaries import inspect
from infra.local.neo4j import Neo4jServer
from infra.local.places import make_folder, remove_folder
from infra.local.postgres import PostgresServer
from infra.local.redis import RedisServer
from infra.local.state import ServerState, StateFolder, write_private
from infra.local.users import find_user

SERVERS: dict[str, Server] = {"postgres": PostgresServer(), "redis": RedisServer(), "neo4j": Neo4jServer()}
ALL = tuple(SERVERS)
START_LIMIT_S = 120.0
START_TRIES = 3
POLL_S = 0.05
LOG_LINES = 15
LEFTOVER_LIMIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Services:
    """Running servers: what each runs from, and the environment that leads to them."""

    home: Path
    states: dict[str, ServerState]
    environment: dict[str, str] = field(repr=False)
    env_file: Path

    @property
    def postgres(self) -> PostgresSettings:
        """Address and password of PostgreSQL."""
        return PostgresServer().settings(self._state("postgres"))

    @property
    def redis(self) -> RedisSettings:
        """Address and password of Redis."""
        return RedisServer().settings(self._state("redis"))

    @property
    def neo4j(self) -> Neo4jSettings:
        """Address and password of Neo4j."""
        return Neo4jServer().settings(self._state("neo4j"))

    def _state(self, name: str) -> ServerState:
        if name not in self.states:
            raise ServiceError(f"{name} was not started in {self.home}: run `ringfence services up`")
        return self.states[name]


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """How one server is. `problem` says why it does not answer, and is empty when it does."""

    name: str
    state: ServerState | None
    running: bool
    problem: str

    @property
    def answers(self) -> bool:
        """Whether it was logged in to and asked with success just now."""
        return not self.problem


def up(
    home: Path,
    *,
    only: Sequence[str] = ALL,
    packaged: bool = False,
    durable: bool = True,
    progress: Progress = no_progress,
    kinds: Mapping[str, Server] = SERVERS,
) -> Services:
    """Start what is not running of `only`, on the ports and data it had before, and return when each answers.

    `packaged` ignores installed servers and takes those of Python packages; `durable=False` gives up crash safety for
    speed. Both count for a server's first start only. `kinds` holds servers that are set up in another way. A second
    caller waits for the first. Raises ServiceError with the end of a server's log when it does not start; the others
    are started all the same.
    """
    _check_names(only)
    folder = StateFolder(home)
    with folder.locked(lambda: progress("services", "waiting for another `services up` or `down`")):
        stopped = threading.Event()
        with ThreadPoolExecutor(len(SERVERS), thread_name_prefix="services") as pool:
            starts = [_Start(kinds[name], folder, packaged, durable, progress, stopped) for name in only]
            tasks = [pool.submit(start.run) for start in starts]
            try:
                errors = [error for task in tasks if (error := task.exception())]
            except BaseException:
                stopped.set()  # Ctrl-C: what was started is recorded, and the next `up` or `down` goes on from there
                raise
        if errors:
            raise errors[0] if len(errors) == 1 else ServiceError("; ".join(str(error) for error in errors))
        return _publish(folder)


def down(home: Path, *, purge: bool = False, progress: Progress = no_progress) -> None:
    """Stop every server of `home` and return when none is left; `purge` removes their data and passwords too."""
    folder = StateFolder(home)
    if not folder.path.is_dir():
        return
    with folder.locked(lambda: progress("services", "waiting for another `services up` or `down`")):
        states = folder.read()
        with ThreadPoolExecutor(len(SERVERS), thread_name_prefix="services") as pool:
            tasks = [pool.submit(_stop, folder, state, purge, progress) for state in states.values()]
        for task in tasks:
            task.result()
        if purge:
            for state in states.values():
                if folder_of(state).is_dir():
                    remove_folder(folder_of(state))
            shutil.rmtree(folder.path)


def status(home: Path) -> list[ServerStatus]:
    """Ask every server; those that never started are named too."""
    states = StateFolder(home).read()
    with ThreadPoolExecutor(len(SERVERS)) as pool:
        return list(pool.map(lambda name: _status(name, states.get(name)), ALL))


def existing(home: Path) -> Services:
    """What `up` returned last, without starting anything; ServiceError when nothing was started."""
    folder = StateFolder(home)
    if not folder.read():
        raise ServiceError(f"no servers in {folder.path}: run `ringfence services up`")
    return _services(folder)


def _check_names(only: Sequence[str]) -> None:
    if unknown := [name for name in only if name not in SERVERS]:
        raise ServiceError(f"unknown server {unknown[0]!r}: expected some of {', '.join(ALL)}")


def _services(folder: StateFolder) -> Services:
    states = folder.read()
    settings = [SERVERS[name].settings(states[name]) for name in ALL if name in states]
    return Services(
        home=folder.home,
        states=states,
        environment=environment.environment(folder.home, settings),
        env_file=services_env_file(folder.home),
    )


def _publish(folder: StateFolder) -> Services:
    services = _services(folder)
    write_private(services.env_file, environment.lines(services.environment))
    return services


def _status(name: str, state: ServerState | None) -> ServerStatus:
    if state is None:
        return ServerStatus(name=name, state=None, running=False, problem="never started")
    if not process.is_alive(state.process):
        return ServerStatus(name=name, state=state, running=False, problem="not running")
    try:
        SERVERS[name].ping(state)
    except StoreUnavailableError as error:
        return ServerStatus(name=name, state=state, running=True, problem=str(error))
    return ServerStatus(name=name, state=state, running=True, problem="")


def _stop(folder: StateFolder, state: ServerState, purge: bool, progress: Progress) -> None:
    server = SERVERS[state.name]
    if state.process is not None and process.is_alive(state.process):
        progress(state.name, "stopping")
        # What is removed next need not be brought in order first.
        first = server.purge_signal if purge else server.stop_signal
        process.stop(state.process, first=first, limit_s=server.stop_limit_s)
        progress(state.name, "stopped")
    _stop_leftovers(server, state)
    folder.put(replace(state, process=None))


def _stop_leftovers(server: Server, state: ServerState) -> None:
    """End what no record knows: a server whose starter was killed meanwhile, children of a server that was killed."""
    for leftover in process.leftovers(Path(server.command(state)[0]).resolve(), folder_of(state)):
        process.stop(leftover, first=server.stop_signal, limit_s=LEFTOVER_LIMIT_S)


@dataclass(frozen=True)
class _Start:
    """One server's way up."""

    server: Server
    folder: StateFolder
    packaged: bool
    durable: bool
    progress: Progress
    stopped: threading.Event

    def run(self) -> None:
        known = self.folder.read().get(self.server.name)
        if known and process.is_alive(known.process) and self.answers(known):
            self.say(f"running already on port {known.port}")
            return
        state = self.with_binary(known) if known else self.create()
        for attempt in range(1, START_TRIES + 1):
            state = self.with_free_port(state)
            state = self.launch(state)
            try:
                self.await_answer(state)
            except _PortTakenError:
                if attempt == START_TRIES:
                    raise
                continue
            self.say(f"answers on port {state.port}")
            return

    def answers(self, state: ServerState) -> bool:
        """Wait for a server that was there before; False where it was just dying: it can be started again."""
        try:
            self.await_answer(state)
        except (_EndedError, _PortTakenError):
            return False
        return True

    def say(self, text: str) -> None:
        if self.stopped.is_set():
            raise ServiceError("interrupted")
        self.progress(self.server.name, text)

    def create(self) -> ServerState:
        user = self.server.user()
        binary = self.server.find(packaged=self.packaged, folder=None)
        self.say(f"taking {binary.path} ({binary.origin}, version {binary.version})")
        data = make_folder(self.folder.path, self.server.name, user)
        state = ServerState(
            name=self.server.name,
            binary=str(binary.path),
            origin=binary.origin,
            version=binary.version,
            port=ports.free_port(),
            password=secrets.token_hex(24),
            data=str(data),
            user=user.name if user else None,
            durable=self.durable,
            process=None,
        )
        self.folder.put(state)  # before anything is made with this password
        return state

    def with_binary(self, state: ServerState) -> ServerState:
        """The same program again; another fitting one when it is gone."""
        if same := inspect(Path(state.binary), state.origin):
            return replace(state, version=same.version)
        binary = self.server.find(packaged=self.packaged, folder=folder_of(state))
        self.say(f"taking {binary.path} ({binary.origin}, version {binary.version}), since {state.binary} is gone")
        return replace(state, binary=str(binary.path), origin=binary.origin, version=binary.version)

    def with_free_port(self, state: ServerState) -> ServerState:
        if ports.is_free(state.port):
            return state
        port = ports.free_port()
        self.say(f"port {state.port} is taken by another program: moving to {port}")
        return replace(state, port=port)

    def launch(self, state: ServerState) -> ServerState:
        folder, log = folder_of(state), log_of(state)
        if not folder.is_dir():
            raise ServiceError(f"{folder} is gone: `ringfence services down --purge` clears what is left")
        _stop_leftovers(self.server, state)
        self.server.prepare(state, self.say)
        self.say("starting")
        if log.exists():
            log.replace(log.with_name("log.previous"))
        user = find_user(state.user) if state.user else None
        started = process.spawn(self.server.command(state), folder=folder, log=log, user=user)
        state = replace(state, process=started)
        self.folder.put(state)
        return state

    def await_answer(self, state: ServerState) -> None:
        """Return when the server answers; ServiceError with the end of its log when it died or takes too long."""
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                self.server.ping(state)
            except StoreUnavailableError as error:
                problem: RingfenceError = error
            else:
                return
            if not process.is_alive(state.process):
                self.raise_dead(state)
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.server.name} runs but does not answer ({problem}): {_log_tail(state)}")
            if self.stopped.wait(POLL_S):
                raise ServiceError("interrupted")

    def raise_dead(self, state: ServerState) -> None:
        tail = _log_tail(state)
        if "address already in use" in tail.lower() or not ports.is_free(state.port):
            raise _PortTakenError(f"{self.server.name} found port {state.port} taken, {START_TRIES} times")
        raise _EndedError(f"{self.server.name} ended at its start: {tail}")


class _EndedError(ServiceError):
    """The server's process is gone."""


class _PortTakenError(ServiceError):
    """Another program took the port between its choice and the server's start: try again on another one."""


def _log_tail(state: ServerState) -> str:
    log = log_of(state)
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"there is no log at {log}"
    return f"the end of {log}:\n" + "\n".join(text.splitlines()[-LOG_LINES:])
