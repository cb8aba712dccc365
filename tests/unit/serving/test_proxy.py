"""The proxy of the fault benchmark does to connections what it says: a fault that does not happen proves nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from bench.proxy import SLOW_S, Mode, Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy in front of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def echo(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                while data := connection.recv(1024):
                    connection.sendall(data)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        made = Proxy(listener.getsockname()[:2])
        yield made
        made.close()
        listener.shutdown(socket.SHUT_RDWR)


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=30)


def says(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return connection.recv(1024)


def test_pass_slow_and_silent(proxy: Proxy) -> None:
    """Bytes pass; when slow an answer takes its time; when silent nothing comes."""
    with connect(proxy) as connection:
        assert says(connection, b"a") == b"a"
        proxy.set(Mode.SLOW)
        begun = time.monotonic()
        assert says(connection, b"b") == b"b"
        assert time.monotonic() - begun >= SLOW_S * 0.95
        proxy.set(Mode.SLOW)
        before = proxy.touched
        connection.sendall(b"x" * 500_000)
        left, begun = 500_000, time.monotonic()
        while left:
            left -= len(connection.recv(1 << 16))
        assert proxy.touched - before > 4
        assert time.monotonic() - begun < 4 * SLOW_S
    proxy.set(Mode.SILENT)
    with connect(proxy) as connection:
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            says(connection, b"c")


def test_cut_and_refuse(proxy: Proxy) -> None:
    """A cut ends what is open and lets new connections pass; refusing ends those too."""
    with connect(proxy) as connection:
        assert says(connection, b"a") == b"a"
        proxy.set(Mode.CUT)
        with pytest.raises(ConnectionError):
            assert says(connection, b"b") or _raise()
    with connect(proxy) as connection:
        assert says(connection, b"c") == b"c"
    proxy.set(Mode.REFUSE)
    with connect(proxy) as connection, pytest.raises(ConnectionError):
        assert says(connection, b"d") or _raise()
    proxy.set(Mode.PASS)
    with connect(proxy) as connection:
        assert says(connection, b"e") == b"e"


def _raise() -> bool:
    """An end of the stream is as good as a reset."""
    raise ConnectionResetError
