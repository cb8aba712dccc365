"""What runs inside a worker process: one handler, one pipe, one task at a time.

Imports nothing but the standard library, so that the fork server can preload it and the handler's own module decides
what a worker holds in memory.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HandlerSpec:
    """Names a class as `module:name` and the arguments to build it with; the worker imports it, nobody else."""

    target: str
    args: tuple[Any, ...] = ()

    def build(self) -> Any:
        module_name, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module_name), name)(*self.args)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a handler's method."""

    method: str
    args: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What became of a call: a value, or the error's type name, message and traceback."""

    value: Any = None
    error_type: str = ""
    error_message: str = ""
    error_trace: str = ""

    @classmethod
    def of_error(cls, error: BaseException) -> Reply:
        return cls(
            error_type=type(error).__name__,
            error_message=str(error),
            error_trace="".join(traceback.format_exception(error)),
        )


def worker_main(pipe: Connection, spec: HandlerSpec) -> None:
    """Build the handler, say so, then answer calls until the pipe closes."""
    # A stop reaches workers through the pipe's end, after the calls under way: process managers and terminals that
    # signal the whole group must not cut them short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # What the fork server has imported is here to stay: collecting it takes longer than all the rest of a start.
    gc.freeze()
    try:
        handler = spec.build()
    except Exception as error:  # noqa: BLE001 - reported to the parent, which decides
        pipe.send(Reply.of_error(error))
        return
    settle()
    pipe.send(Reply(value=os.getpid()))
    _serve(pipe, handler)


def settle() -> None:
    """Take everything that lives by now out of the garbage collector's sight: full collections make the tail."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _serve(pipe: Connection, handler: Any) -> None:
    while True:
        try:
            call: Call = pipe.recv()
        except EOFError:
            close = getattr(handler, "close", None)
            if close is not None:
                close()
            return
        try:
            reply = Reply(value=answer(handler, call))
        except Exception as error:  # noqa: BLE001 - reported to the parent, which decides
            reply = Reply.of_error(error)
        try:
            pipe.send(reply)
        except BrokenPipeError:
            return
        except Exception as error:  # noqa: BLE001 - an answer that cannot be sent is reported as the call's error
            pipe.send(Reply.of_error(error))


def answer(handler: Any, call: Call) -> Any:
    """Run one call on the handler. Two names are answered for any handler: `loaded_modules` and `settle`."""
    if call.method == "loaded_modules":
        return sorted(sys.modules)
    if call.method == "settle":
        return settle()
    return getattr(handler, call.method)(*call.args)
