"""Connections under limits: how much and how long a client may send before it is a request, and how many there are.

Uvicorn's own protocol waits for ever for headers of any size, for a body that nobody reads any more, and for a client
that does not take its answer. Each of these holds a connection and memory.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from graph_features.settings import ServingSettings
from serving.api import Problem
from serving.problems import PROBLEM_MEDIA_TYPE, RETRY_AFTER_S
from serving.worker import settle


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """Bytes of a request's first line and headers, seconds for them, seconds a reply may be stuck, open connections."""

    header_bytes: int
    header_s: float
    write_s: float
    connections: int


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 under `limits`."""

    limits: ClassVar[ConnectionLimits]
    _deadline: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _in_head = True
    _in_body = False
    _head_bytes = 0
    _trailer_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        full = len(self.connections) >= self.limits.connections
        super().connection_made(transport)
        if full:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "Too many connections are open.")
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear()
        self.resume_writing()
        super().connection_lost(exc)

    # ------------------------------------------------------------ what comes in

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        was_in_head, self._head_bytes = self._in_head, self._head_bytes + len(data)
        super().data_received(data)
        if was_in_head and self._in_head and self._head_bytes > self.limits.header_bytes:
            detail = f"The first line and the headers are longer than {self.limits.header_bytes} bytes."
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large", detail)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if self._in_body:
            # Trailers behind a chunked body: nothing reads them, and they must not pile up.
            self._trailer_bytes += len(name) + len(value)
            if self._trailer_bytes > self.limits.header_bytes:
                self.transport.abort()

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._clear()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body, self._head_bytes, self._trailer_bytes = False, 0, 0
        self._clear()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            # Answered before all of the body had come: the client may finish sending and read, but not go on for ever.
            self._after(self.limits.header_s, self.transport.abort)

    def _await_head(self) -> None:
        self._in_head = True
        self._after(self.limits.header_s, self._no_head)

    def _no_head(self) -> None:
        if self._head_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "slow-headers", "The headers did not arrive in time.")
        else:
            self.transport.close()

    def _after(self, seconds: float, then: object) -> None:
        self._clear()
        self._deadline = self.loop.call_later(seconds, then)  # type: ignore[arg-type]

    def _clear(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # ------------------------------------------------------------ what goes out

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "bad-input", msg)

    def _refuse(self, status: HTTPStatus, name: str, detail: str) -> None:
        """Answer with a problem, unless an answer is being written, and close."""
        self._clear()
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        problem = Problem(type=f"urn:ringfence:problem:{name}", title=status.phrase, status=status, detail=detail)
        content = msgspec.json.encode(problem)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"content-type: {PROBLEM_MEDIA_TYPE}",
            f"content-length: {len(content)}",
            "x-content-type-options: nosniff",
            "connection: close",
            *([f"retry-after: {RETRY_AFTER_S}"] if status is HTTPStatus.SERVICE_UNAVAILABLE else []),
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        self.transport.close()


def limited(settings: ServingSettings) -> type[LimitedProtocol]:
    """The protocol with the limits of `settings`, for uvicorn's `http`."""
    limits = ConnectionLimits(
        header_bytes=settings.max_header_bytes,
        header_s=settings.header_timeout_s,
        write_s=settings.write_timeout_s,
        connections=settings.max_connections,
    )
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})


class Server(uvicorn.Server):
    """A server whose requests wait for no full pass of the garbage collector over all that was imported: .3 s of it."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, with everything that lives by then out of the collector's sight."""
        await super().startup(sockets=sockets)
        settle()
