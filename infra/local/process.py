"""Server processes: started apart from their parent, known by pid and start time, ended for certain."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from graph_features.errors import ServiceError
from infra.local.users import User

POLL_S = 0.05
KILL_LIMIT_S = 10.0
LINUX = platform.system() == "Linux"

# The shell puts the server in the background and ends at once, so that the server's parent is init: it outlives the
# caller, and never becomes a zombie of it. `exec` keeps the pid that the shell prints.
_DETACH = 'log="$1"; shift; exec "$@" >>"$log" 2>&1 </dev/null & echo $!'


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """One process for ever: a later process with the same pid has another start time."""

    pid: int
    started: str


def identify(pid: int) -> ProcessId | None:
    """The live process with this pid; None when there is none, or only a zombie without threads."""
    if LINUX:
        return _identify_linux(pid)
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessId(pid=pid, started=f"{process.create_time():.2f}")
    except psutil.NoSuchProcess:
        return None


def _identify_linux(pid: int) -> ProcessId | None:
    # Ticks since boot are exact and, unlike a wall-clock start time, do not move when the clock is set.
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    # A killed server's first thread is a zombie while the others, and the port that they hold, are still there.
    if state in "ZX" and int(fields[16]) <= 1:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ProcessId(pid=pid, started=f"{boot}:{fields[18]}")


def is_alive(process: ProcessId | None) -> bool:
    """Whether exactly this process still runs."""
    return process is not None and identify(process.pid) == process


def clean_environment(home: Path) -> dict[str, str]:
    """What a server may know of the caller's environment: nothing that changes how it behaves."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": str(home), "LC_ALL": "C.UTF-8" if LINUX else "C", "TZ": "UTC"}


def run(command: Sequence[str | Path], *, folder: Path, user: User | None, stdin: str = "") -> None:
    """Run a command to its end as `user` in `folder`; raise ServiceError with the end of its output when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=clean_environment(folder),
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        umask=0o077,
        check=False,
        **(user.popen_arguments() if user else {}),
    )
    if done.returncode != 0:
        name = Path(command[0]).name
        raise ServiceError(f"{name} failed with exit code {done.returncode}: {done.stdout[-2000:].strip()}")


def spawn(command: Sequence[str | Path], *, folder: Path, log: Path, user: User | None) -> ProcessId:
    """Start a server that outlives this process, as `user` in `folder`, its output appended to `log`."""
    done = subprocess.run(
        ["/bin/sh", "-c", _DETACH, "sh", str(log), *(str(part) for part in command)],
        cwd=folder,
        env=clean_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        umask=0o077,
        check=True,
        **(user.popen_arguments() if user else {}),
    )
    pid = int(done.stdout)
    # Gone already: an identity that no process has, so that the caller sees a dead server and shows its log.
    return identify(pid) or ProcessId(pid=pid, started="ended at once")


def stop(process: ProcessId, *, first: signal.Signals, limit_s: float) -> None:
    """End a process and its descendants: the given signal, then SIGKILL after `limit_s`; return when none is left."""
    if not is_alive(process):
        return
    family = [process, *_descendants(process)]
    _send(process, first)
    if first is not signal.SIGKILL and _wait_until_dead([process], limit_s):
        _wait_until_dead(family, 1.0)
    for member in family:
        _send(member, signal.SIGKILL)
    if not _wait_until_dead(family, KILL_LIMIT_S):
        raise ServiceError(f"process {process.pid} does not end, not even by SIGKILL: look at it with ps")


def leftovers(program: Path, folder: Path) -> list[ProcessId]:
    """Processes that run this program inside this folder: an unrecorded server, or a dead one's children."""
    found = []
    for candidate in psutil.process_iter():
        try:
            if Path(candidate.exe()) == program and Path(candidate.cwd()).is_relative_to(folder):
                found.append(identify(candidate.pid))
        except (psutil.Error, OSError):
            continue  # gone, or another user's: not one of ours
    return [process for process in found if process is not None]


def _descendants(process: ProcessId) -> list[ProcessId]:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = (identify(child.pid) for child in children)
    return [child for child in found if child is not None]


def _send(process: ProcessId, number: signal.Signals) -> None:
    if not is_alive(process):
        return
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise ServiceError(
            f"process {process.pid} belongs to another user: stop it as the user who started the servers"
        ) from None


def _wait_until_dead(processes: Sequence[ProcessId], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while any(is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
