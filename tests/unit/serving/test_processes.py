"""The parent of several servers: one port, children replaced, all ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from graph_features.settings import PoolKind, ServingSettings
from serving.processes import exported

ROOT = Path(__file__).parents[3]
# The parent with small children: who they are is what their answer says.
PARENT = """
import sys
from graph_features.settings import ServingSettings
from serving import logs, processes

logs.configure("INFO")
sys.exit(processes.Parent(ServingSettings(processes=2, port=0), processes.exported(ServingSettings())).run())
"""
CHILD = """
import os, signal, sys
from serving.processes import inherited

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
listener = inherited()
while True:
    connection, _ = listener.accept()
    connection.recv(4096)
    body = str(os.getpid()).encode()
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n" % len(body))
    connection.sendall(b"Connection: close\\r\\n\\r\\n" + body)
    connection.close()
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A parent whose children are the little server above; its process and its address."""
    package = tmp_path / "serving"
    package.mkdir()
    (package / "__init__.py").write_text(f"__path__ = [{str(package)!r}, {str(ROOT / 'serving')!r}]\n")
    (package / "main.py").write_text(CHILD)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    yield process, line.split('"url":"')[1].split('"')[0]
    process.kill()
    process.wait()
    process.stderr.close()


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children()
    return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def answers(url: str) -> int:
    return int(httpx.get(url, timeout=120).text)


def test_children_share_the_port_and_are_replaced(parent: tuple[subprocess.Popen[str], str]) -> None:
    """Requests are answered by children; a killed one is replaced, and SIGTERM ends all in order."""
    process, url = parent
    until(lambda: len(children(process)) == 2)
    first = answers(url)
    assert first in {child.pid for child in children(process)}
    os.kill(first, signal.SIGKILL)
    assert answers(url) != first
    until(lambda: len(children(process)) == 2 and first not in {child.pid for child in children(process)})
    running = children(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(running, timeout=30)
    assert alive == []


def test_children_end_with_a_killed_parent(parent: tuple[subprocess.Popen[str], str]) -> None:
    """A parent that is killed must leave no server behind that nobody watches."""
    process, url = parent
    until(lambda: len(children(process)) == 2)
    running = children(process)
    # Whoever answers has taken its leash.
    until(lambda: answers(url) > 0)
    process.kill()
    _, alive = psutil.wait_procs(running, timeout=60)
    assert alive == []


def test_settings_reach_the_children() -> None:
    """What was set on the command line must be in the environment of the children."""
    variables = exported(ServingSettings(host="127.0.0.2", port=7, pool=PoolKind.THREAD, deadline_ms=5))
    found = {name: variables[f"RINGFENCE_SERVING_{name}"] for name in ("HOST", "PORT", "POOL", "DEADLINE_MS")}
    assert found == {"HOST": "127.0.0.2", "PORT": "7", "POOL": "thread", "DEADLINE_MS": "5"}
