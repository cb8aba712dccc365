"""A TCP proxy on the loopback that can be slow, refuse, cut or fall silent: what networks and dying servers do."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from enum import StrEnum
from typing import Any


class Mode(StrEnum):
    """How the proxy behaves."""

    PASS = "pass"
    SLOW = "slow"
    REFUSE = "refuse"
    CUT = "cut"
    SILENT = "silent"


SLOW_S = 0.5


class Proxy:
    """Listens on `port` of the loopback and passes everything on to `target`; has a loop and a thread of its own.

    pass: as if it were not there. slow: what is answered arrives SLOW_S later than it was. refuse: open connections are
    reset, and new ones too, as if nobody listened. cut: open connections are reset once, new ones are passed on.
    silent: connections are taken and nothing ever arrives, as when a machine has lost its power.

    `touched` counts the connections and pieces that have met with one of these.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.touched = 0
        self._mode = Mode.PASS
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def set(self, mode: Mode) -> None:
        """Behave so from now on."""
        self._do(self._set(mode))

    def close(self) -> None:
        """Stop listening and reset what is open."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _set(self, mode: Mode) -> None:
        self._mode = Mode.PASS if mode is Mode.CUT else mode
        # What was held up while silent would arrive out of its time: its connections end with it.
        if mode is not Mode.SLOW:
            self.touched += len(self._open)
            for writer in list(self._open):
                _reset(writer)

    async def _close(self) -> None:
        self._server.close()
        for writer in list(self._open):
            _reset(writer)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode is Mode.REFUSE:
            self.touched += 1
            _reset(writer)
            return
        self._open.add(writer)
        try:
            their_reader, their_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            self._open.discard(writer)
            return
        self._open.add(their_writer)
        try:
            await asyncio.gather(self._copy(reader, their_writer), self._answer(their_reader, writer))
        finally:
            for one in (writer, their_writer):
                self._open.discard(one)
                one.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._pass(data, writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes, each piece in its time: later when slow, but not behind all that came before it."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        passing = asyncio.ensure_future(self._deliver(pieces, writer))
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                slow = self._mode is Mode.SLOW
                self.touched += slow
                pieces.put_nowait((self._loop.time() + SLOW_S * slow, data))
        pieces.put_nowait((0.0, b""))
        await passing

    async def _deliver(self, pieces: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while (piece := await pieces.get())[1]:
                await asyncio.sleep(max(0.0, piece[0] - self._loop.time()))
                await self._pass(piece[1], writer)
        writer.close()

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self._mode is Mode.SILENT:
            self.touched += 1
        while self._mode is Mode.SILENT:
            await asyncio.sleep(0.05)
        writer.write(data)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
