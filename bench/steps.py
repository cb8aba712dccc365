"""Runs a command and measures it: seconds, and the largest memory of its whole process tree."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import psutil

SAMPLE_S = 0.2
MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a command took. `peak_mb` adds up the proportional memory of the command and its workers, not of servers."""

    name: str
    seconds: float
    peak_mb: float
    output: str


def ringfence(name: str, arguments: Sequence[str], *, environment: Mapping[str, str]) -> Step:
    """Run `ringfence ARGUMENTS`; raise CalledProcessError unless it exits 0."""
    command = [str(Path(sys.executable).with_name("ringfence")), *arguments]
    started = perf_counter()
    process = subprocess.Popen(command, env=dict(environment), stdout=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    peak.start()
    output, _ = process.communicate()
    seconds = perf_counter() - started
    peak.stop()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    sys.stderr.write(f"{name}: {seconds:.1f} s, {peak.mb:.0f} MB\n")
    return Step(name=name, seconds=seconds, peak_mb=peak.mb, output=output)


class Peak(threading.Thread):
    """Samples the proportional set size of a process tree."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.mb = 0.0
        self._root = psutil.Process(pid)
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(SAMPLE_S):
            try:
                tree = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.mb = max(self.mb, sum(map(_memory, tree)) / MB)

    def stop(self) -> None:
        self._done.set()
        self.join()


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
