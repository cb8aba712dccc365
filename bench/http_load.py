"""A lean HTTP/1.1 client: what it costs is small beside what the servers cost that share its cores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came of a run: counts, and the latency of each answer in seconds."""

    seconds: float
    latencies: list[float]
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Good answers per second."""
        return self.statuses.get(200, 0) / self.seconds

    @property
    def failed(self) -> int:
        return sum(self.statuses.values()) - self.statuses.get(200, 0)

    def quantile_ms(self, share: float) -> float:
        return float(np.quantile(self.latencies, share)) * 1e3 if self.latencies else float("nan")


KEY = "the key of a benchmark, which is no secret"
"""What callers of our server are known by; peers get it too, and pass over it."""


def post(path: str, body: bytes, *, kind: str = "application/json", more: str = "") -> bytes:
    """A whole POST request; `more` are further header lines, each with its line end."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {KEY}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + f"\r\n{more}\r\n").encode() + body


class Connection:
    """One connection, kept alive."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._place = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Send a whole request; return status and body. Raises OSError or EOFError when the connection is lost."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._place, limit=1 << 24)
        reader, writer = self._streams
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head[9:12])
            if b"transfer-encoding: chunked" in head:
                return status, await _chunked(reader)
            _, _, rest = head.partition(b"content-length:")
            length = int(rest.partition(b"\r\n")[0]) if rest else 0
            body = await reader.readexactly(length)
        except BaseException:
            self.close()
            raise
        if b"connection: close" in head:
            self.close()
        return status, body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


async def _closed(url: str, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    latencies: list[float] = []
    statuses: dict[int, int] = {}
    begun = time.perf_counter()

    async def run(first: int) -> None:
        connection = Connection(url)
        at = first
        while time.perf_counter() - begun < seconds:
            sent = time.perf_counter()
            try:
                status, _ = await connection.send(requests[at % len(requests)])
            except (OSError, EOFError):
                status = 0
            latencies.append(time.perf_counter() - sent)
            statuses[status] = statuses.get(status, 0) + 1
            at += connections
        connection.close()

    await asyncio.gather(*(run(first) for first in range(connections)))
    return Load(seconds=time.perf_counter() - begun, latencies=latencies, statuses=statuses)


def closed_loop(url: str, requests: Sequence[bytes], *, connections: int, seconds: float) -> Load:
    """Each connection sends its next request when it has its answer."""
    return asyncio.run(_closed(url, requests, connections, seconds))


async def _open(url: str, requests: Sequence[bytes], rate: float, seconds: float, seed: int) -> Load:
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, int(rate * seconds)))
    due = np.cumsum(gaps).tolist()
    idle: list[Connection] = []
    latencies: list[float] = []
    statuses: dict[int, int] = {}
    begun = time.perf_counter()

    async def run(at: int, moment: float) -> None:
        connection = idle.pop() if idle else Connection(url)
        try:
            status, _ = await connection.send(requests[at % len(requests)])
        except (OSError, EOFError):
            status = 0
        # From when it was due, so that a server that stalls cannot hide the requests that it held up.
        latencies.append(time.perf_counter() - begun - moment)
        statuses[status] = statuses.get(status, 0) + 1
        idle.append(connection)

    async with asyncio.TaskGroup() as sending:
        # One by one: thousands of tasks made at once would hold up the first requests by themselves.
        for at, moment in enumerate(due):
            if (early := moment - (time.perf_counter() - begun)) > 0:
                await asyncio.sleep(early)
            sending.create_task(run(at, moment))
    took = time.perf_counter() - begun
    for connection in idle:
        connection.close()
    return Load(seconds=took, latencies=latencies, statuses=statuses)


def open_loop(url: str, requests: Sequence[bytes], *, rate: float, seconds: float, seed: int = 1) -> Load:
    """Requests come at random, `rate` a second, whatever the server does; latency counts from when each was due."""
    return asyncio.run(_open(url, requests, rate, seconds, seed))


async def _once(url: str, request: bytes) -> tuple[int, bytes]:
    connection = Connection(url)
    try:
        return await connection.send(request)
    finally:
        connection.close()


def once(url: str, request: bytes) -> bytes:
    """One request; raise RuntimeError unless it is answered with 200."""
    status, body = asyncio.run(_once(url, request))
    if status != 200:
        raise RuntimeError(f"{url}: {status} {body[:500]!r}")
    return body
