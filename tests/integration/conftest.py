"""Redis as a cluster, watched by Sentinel and behind TLS."""

from __future__ import annotations

import ctypes
import datetime as dt
import ipaddress
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from graph_features.settings import RedisSettings

HOST = "127.0.0.1"
MASTERS = 3
SLOTS = 16_384
START_LIMIT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class RedisNodes:
    """Three masters, each with a replica; `processes` by port, the masters first."""

    processes: dict[int, subprocess.Popen[bytes]]
    password: str = field(repr=False)

    @property
    def ports(self) -> list[int]:
        return list(self.processes)

    @property
    def connection_string(self) -> str:
        """As Feast's configuration has it: any two nodes."""
        return f"{HOST}:{self.ports[0]},{HOST}:{self.ports[4]},password={self.password}"


def die_with_the_run() -> None:
    """Ask the kernel to end this process when the test run ends, however it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@pytest.fixture(scope="session")
def start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], RedisNodes]]:
    """start_cluster(): six more Redis processes that form a cluster; ended with the run."""
    started: list[RedisNodes] = []
    folders: list[Path] = []

    def make() -> RedisNodes:
        folders.append(tmp_path_factory.mktemp("cluster"))
        password = secrets.token_hex(8)
        nodes = RedisNodes(processes={}, password=password)
        started.append(nodes)
        for port in _free_ports(2 * MASTERS):
            nodes.processes[port] = _start_node(folders[-1], port, password)
        _form(nodes)
        return nodes

    yield make
    for nodes in started:
        for process in nodes.processes.values():
            process.kill()
            process.wait()
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def redis_cluster(start_cluster: Callable[[], RedisNodes]) -> RedisNodes:
    """One cluster for tests that leave it as it is; their projects must differ."""
    return start_cluster()


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and free 10,000 above, where the nodes of a cluster talk to each other."""
    found: list[int] = []
    with ExitStack() as held:
        for port in range(21_000 + secrets.randbelow(20_000), 55_000):
            pair = [held.enter_context(closing(socket.socket())) for _ in range(2)]
            with suppress(OSError):
                for one, number in zip(pair, (port, port + 10_000), strict=True):
                    one.bind((HOST, number))
                found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError("no free ports for a Redis Cluster")


def _start_node(folder: Path, port: int, password: str) -> subprocess.Popen[bytes]:
    from infra.local.binaries import find_redis

    place = folder / str(port)
    place.mkdir()
    lines = [
        f"bind {HOST}",
        f"port {port}",
        f"dir {place}",
        f"requirepass {password}",
        f"masterauth {password}",
        "cluster-enabled yes",
        "cluster-node-timeout 2000",
        "cluster-replica-validity-factor 0",
        "repl-diskless-sync yes",
        "repl-diskless-sync-delay 0",
        'save ""',
    ]
    (place / "redis.conf").write_text("\n".join(lines) + "\n")
    with (place / "log").open("wb") as log:
        return subprocess.Popen(
            [find_redis(packaged=True).path, place / "redis.conf"],
            stdout=log,
            stderr=log,
            preexec_fn=die_with_the_run,
        )


def _form(nodes: RedisNodes) -> None:
    import redis

    with ExitStack() as opened:
        clients = [
            opened.enter_context(redis.Redis(host=HOST, port=port, password=nodes.password)) for port in nodes.ports
        ]
        _until(lambda: all(client.ping() for client in clients))
        for client in clients[1:]:
            client.execute_command("CLUSTER MEET", HOST, nodes.ports[0])
        for place, client in enumerate(clients[:MASTERS]):
            slots = range(place * SLOTS // MASTERS, (place + 1) * SLOTS // MASTERS)
            client.execute_command("CLUSTER ADDSLOTS", *slots)
        ids = [client.execute_command("CLUSTER MYID").decode() for client in clients]
        _until(lambda: all(_known(client) == 2 * MASTERS for client in clients))
        for place, client in enumerate(clients[MASTERS:]):
            client.execute_command("CLUSTER REPLICATE", ids[place])
        _until(lambda: all(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok" for client in clients))
        _until(lambda: all(client.info("replication")["connected_slaves"] == 1 for client in clients[:MASTERS]))


def _known(client: object) -> int:
    info = client.execute_command("CLUSTER INFO")  # type: ignore[attr-defined]
    return int(info["cluster_known_nodes"])


def _until(done: Callable[[], bool]) -> None:
    import redis

    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit:
        with suppress(redis.ConnectionError):
            if done():
                return
        time.sleep(0.05)
    raise TimeoutError(f"the Redis Cluster was not ready within {START_LIMIT_S:.0f} s")


# ---------------------------------------------------------------- Sentinel


@pytest.fixture
def redis_sentinel(redis_settings: RedisSettings, tmp_path: Path) -> Iterator[int]:
    """The port of a Sentinel that knows the test's Redis as `shop`."""
    from infra.local.binaries import find_redis

    [port] = _free_ports(1)
    lines = [
        f"bind {HOST}",
        f"port {port}",
        f"dir {tmp_path}",
        f"sentinel monitor shop {redis_settings.host} {redis_settings.port} 1",
        f"sentinel auth-pass shop {redis_settings.password.get_secret_value()}",
    ]
    (tmp_path / "sentinel.conf").write_text("\n".join(lines) + "\n")
    command = [find_redis(packaged=True).path, tmp_path / "sentinel.conf", "--sentinel"]
    with (tmp_path / "sentinel.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_the_run)
    try:
        _until(lambda: _masters(port) == {"shop"})
        yield port
    finally:
        process.kill()
        process.wait()


def _masters(port: int) -> set[str]:
    import redis

    with redis.Redis(host=HOST, port=port) as client:
        return set(client.sentinel_masters())


# ---------------------------------------------------------------- TLS


@dataclass(frozen=True, kw_only=True)
class TlsFront:
    """A port where `settings`' server answers over TLS, and the certificate to trust."""

    port: int
    ca_file: Path
    settings: RedisSettings


@pytest.fixture
def redis_tls(redis_settings: RedisSettings, tmp_path: Path) -> Iterator[TlsFront]:
    """The test's Redis behind TLS: the packaged server is built without, so that a relay in front of it does that."""
    certificate, key = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server((HOST, 0)) as listener, ExitStack() as ends:
        threading.Thread(target=_relay, args=(listener, context, redis_settings.port, ends), daemon=True).start()
        yield TlsFront(port=listener.getsockname()[1], ca_file=certificate, settings=redis_settings)
        # Wakes the thread that waits for the next client.
        listener.shutdown(socket.SHUT_RDWR)


def _relay(listener: socket.socket, context: ssl.SSLContext, port: int, ends: ExitStack) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        try:
            client = context.wrap_socket(plain, server_side=True)
        except (ssl.SSLError, OSError):
            plain.close()  # a client without TLS, or one that does not trust the certificate
            continue
        server = socket.create_connection((HOST, port))
        for one in (client, server):
            ends.callback(one.close)
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for the loopback address that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(*encoding))
    return certificate, private
