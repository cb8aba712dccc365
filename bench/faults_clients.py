"""Clients that hold connections and do not use them: silent, slow to ask, slow to send, and such as never read."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bench.http_load import KEY

SILENT, SLOW_HEADS, SLOW_BODIES, DEAF = 50, 50, 80, 20
ALL = SILENT + SLOW_HEADS + SLOW_BODIES + DEAF
EVERY_S = 0.5
ASKED_BY_THE_DEAF = 100

_BODY = f"POST /predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 1000\r\n\r\n".encode()
_DEAF = f"GET /openapi.json HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n\r\n".encode() * ASKED_BY_THE_DEAF


class Client:
    """A connection that says `first`, then `more` now and then, and comes back when it is ended."""

    def __init__(self, port: int, first: bytes = b"", more: bytes = b"", *, reads: bool = True) -> None:
        self.ended = 0
        self._port, self._first, self._more, self._reads = port, first, more, reads
        self._open()

    def _open(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self._socket.connect(("127.0.0.1", self._port))
        self._socket.setblocking(False)
        with suppress(OSError):
            self._socket.send(self._first)

    def step(self) -> None:
        """Say a little more; start again where the server has had enough."""
        try:
            self._socket.send(self._more or b"")
            # A server that closes is noticed by reading only; one that resets, by either.
            over = self._reads and self._socket.recv(1 << 16, socket.MSG_PEEK) is not None
        except BlockingIOError:
            over = False
        except OSError:
            over = True
        if over or self._is_reset():
            self.ended += 1
            self.close()
            self._open()

    def _is_reset(self) -> bool:
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def close(self) -> None:
        self._socket.close()


@contextmanager
def bad_clients(port: int) -> Iterator[list[Client]]:
    """All of them, connected."""
    clients = [
        *(Client(port) for _ in range(SILENT)),
        *(Client(port, b"POST /predict HTTP/1.1\r\nHost: x\r\nX-A: ", b"a") for _ in range(SLOW_HEADS)),
        *(Client(port, _BODY, b" ") for _ in range(SLOW_BODIES)),
        # What they go on saying means nothing, but is answered by a reset when the connection is no more.
        *(Client(port, _DEAF, b"\r\n", reads=False) for _ in range(DEAF)),
    ]
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


def trickle(port: int, seconds: float) -> int:
    """Be such clients for that long; return how many of them the server ended at least once."""
    with bad_clients(port) as clients:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for client in clients:
                client.step()
            time.sleep(EVERY_S)
        return sum(client.ended > 0 for client in clients)
