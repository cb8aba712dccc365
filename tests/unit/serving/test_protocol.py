"""Clients that are slow, greedy, silent or many: each is sent away in time, and the others do not notice."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import uvicorn

from graph_features.settings import ServingSettings
from serving.protocol import limited

LARGE = b"x" * (32 << 20)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers the body's length; /large with much; /early without having read anything."""
    size = 0
    if scope["path"] != "/early":
        more = True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": LARGE if scope["path"] == "/large" else b"%d" % size})


@contextmanager
def running(**settings: Any) -> Iterator[tuple[Any, int]]:
    protocol = limited(ServingSettings(**settings))
    config = uvicorn.Config(
        echo, port=0, lifespan="off", log_config=None, http=protocol, ws="none", timeout_keep_alive=30
    )
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
        listener.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running(header_timeout_s=0.5, max_header_bytes=4_096, write_timeout_s=0.5, max_connections=20) as (_, found):
        yield found


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def answer(client: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    try:
        while piece := client.recv(65_536):
            found += piece
    except ConnectionResetError:
        found += b"(reset)"
    return found


def test_ordinary_requests_keep_their_connection(port: int) -> None:
    """Requests one after the other, pipelined, chunked and with a large body are answered on one connection."""
    with connected(port) as client:
        for _ in range(2):
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
            assert b"100000" in client.recv(1_000)
            time.sleep(0.7)  # longer than headers may take: what is idle is not slow
        client.sendall(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert answer(client).count(b"200 OK") == 2
    with connected(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        client.sendall(b"3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n")
        assert b"200 OK" in answer(client)


@pytest.mark.parametrize(
    ("sent", "status", "name"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ", b"408 Request Timeout", b"slow-headers"),
        (b"GET / HTTP/1.1\r\nX-Large: " + b"x" * 70_000, b"431 Request Header Fields Too Large", b"headers-too-large"),
        (b"GET /" + b"x" * 70_000, b"431 Request Header Fields Too Large", b"headers-too-large"),
        (b"what is this\r\n\r\n", b"400 Bad Request", b"bad-input"),
    ],
)
def test_what_never_becomes_a_request_is_a_problem(port: int, sent: bytes, status: bytes, name: bytes) -> None:
    """Slow, large and malformed heads are answered with a problem, and the connection is closed."""
    with connected(port) as client:
        client.sendall(sent)
        found = answer(client)
    assert found.startswith(b"HTTP/1.1 " + status), found[:200]
    assert b"application/problem+json" in found
    assert b"urn:ringfence:problem:" + name in found


def test_a_head_that_trickles_is_late_all_the_same(port: int) -> None:
    """A byte now and then does not extend the time for headers, on a second request neither."""
    with connected(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200 OK" in client.recv(1_000)
        begun = time.monotonic()
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        with suppress(OSError):
            while time.monotonic() - begun < 10:
                client.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() - begun < 8


def test_silent_connections_are_closed(port: int) -> None:
    """A connection on which nothing comes is closed without a word."""
    with connected(port) as client:
        assert answer(client) == b""


def test_a_body_that_nobody_reads_may_not_go_on_for_ever(port: int) -> None:
    """After an early answer the client may finish sending for a while; then the connection ends."""
    with connected(port) as client:
        client.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
        assert b"200 OK" in client.recv(1_000)
        begun = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - begun < 10:
                client.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() - begun < 8


def test_a_client_that_takes_nothing_is_cut_off() -> None:
    """A reply that is stuck ends its connection instead of holding its memory."""
    with running(write_timeout_s=0.3) as (server, port), connected(port) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        deadline = time.monotonic() + 10
        while server.server_state.total_requests < 1 or server.server_state.connections:
            assert time.monotonic() < deadline, "the connection is still held"
            time.sleep(0.05)
        assert len(answer(client)) < len(LARGE)


def test_more_connections_than_allowed_are_refused() -> None:
    """The first ones go on, the others get 503 with Retry-After, and there is room again when one leaves."""
    with running(max_connections=2, header_timeout_s=60) as (server, port):
        first, second = connected(port), connected(port)
        while len(server.server_state.connections) < 2:
            time.sleep(0.01)
        with connected(port) as third:
            found = answer(third)
        assert found.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in found
        first.close()
        while len(server.server_state.connections) > 1:
            time.sleep(0.01)
        for client in (second, connected(port)):
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert b"200 OK" in answer(client)
            client.close()
