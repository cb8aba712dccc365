"""When workers were lost and replaced, to the millisecond, from what the server logs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

POOL = "ringfence.serving.pool"


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """A worker that was lost, why, and the time (time.time) when another stood in its place."""

    pid: int
    reason: str
    back_at: float


class PoolLog:
    """The lines about workers of one pool that a server has logged since this was made."""

    def __init__(self, path: Path, pool: str) -> None:
        self._path, self._pool = path, pool
        self._start = path.stat().st_size

    def replaced(self) -> list[Replaced]:
        """Every worker that was lost and has been replaced by now, in the order of their replacement."""
        lost: dict[str, tuple[int, str]] = {}
        found: list[Replaced] = []
        with self._path.open("rb") as log:
            log.seek(self._start)
            for line in log:
                event = _event(line)
                worker = str(event.get("worker", ""))
                if event.get("logger") != POOL or worker.rpartition("-")[0] != self._pool:
                    continue
                if event["message"] == "worker lost":
                    lost.setdefault(worker, (event["worker_pid"] or 0, event["reason"]))
                elif event["message"] == "worker started" and worker in lost:
                    pid, reason = lost.pop(worker)
                    back_at = datetime.fromisoformat(event["time"]).timestamp()
                    found.append(Replaced(pid=pid, reason=reason, back_at=back_at))
        return found


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
