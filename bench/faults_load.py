"""Load whose every answer is checked: scores against those computed beforehand, by hand, from the same rows."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from bench.http_load import Connection, post
from bench.serving_world import World

TOLERANCE = 1e-6
NOT_OVER_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request: when it was sent and answered (time.monotonic), its status (0: no answer), what was wrong."""

    sent: float
    done: float
    status: int
    degraded: bool
    wrong: str


@dataclass(kw_only=True)
class Target:
    """A request and the scores that it must get while nothing is missing."""

    payments: list[dict[str, Any]]
    expected: list[float]

    @property
    def request(self) -> bytes:
        return post("/predict", json.dumps({"transactions": self.payments}).encode())

    def verdict(self, status: int, body: bytes) -> tuple[bool, str]:
        """Whether a score is degraded, and what is wrong with the others."""
        if status != 200:
            return False, "" if body and b'"status":' in body else f"status {status} without a problem document"
        scores = json.loads(body)["scores"]
        ids = [score["transaction_id"] for score in scores]
        if ids != [payment["transaction_id"] for payment in self.payments]:
            return False, "other payments, or in another order"
        degraded = [bool(score["degraded"]) for score in scores]
        for score, expected, without in zip(scores, self.expected, degraded, strict=True):
            if not without and abs(score["fraud_score"] - expected) > TOLERANCE:
                return any(degraded), f"{score['transaction_id']}: {score['fraud_score']}, expected {expected}"
        return any(degraded), ""


@dataclass
class Shooter:
    """Sends the targets again and again over so many connections, in a thread of its own."""

    url: str
    targets: list[Target]
    connections: int = 2
    answers: list[Answer] = field(default_factory=list)
    _stop: bool = False

    def __enter__(self) -> Shooter:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(timeout=2 * NOT_OVER_S)

    def since(self, moment: float) -> list[Answer]:
        """Answers to requests that were sent from then on."""
        return [answer for answer in list(self.answers) if answer.sent >= moment]

    def recovered(self, moment: float, *, limit_s: float) -> float:
        """Seconds from `moment` until three good answers in a row have come; raise TimeoutError."""
        while time.monotonic() < moment + limit_s:
            row = 0
            for answer in sorted(self.since(moment - NOT_OVER_S), key=lambda one: one.done):
                if answer.done < moment:
                    continue
                row = row + 1 if answer.status == 200 and not answer.degraded and not answer.wrong else 0
                if row == 3:
                    return answer.done - moment
            time.sleep(0.05)
        raise TimeoutError(f"no three good answers in a row within {limit_s:g} s: {self.answers[-3:]}")

    async def _run(self) -> None:
        await asyncio.gather(*(self._shoot(first) for first in range(self.connections)))

    async def _shoot(self, at: int) -> None:
        connection = Connection(self.url)
        requests = [target.request for target in self.targets]
        while not self._stop:
            which, at = at % len(requests), at + self.connections
            sent = time.monotonic()
            try:
                status, body = await asyncio.wait_for(connection.send(requests[which]), NOT_OVER_S)
                degraded, wrong = self.targets[which].verdict(status, body)
            except (OSError, EOFError, TimeoutError):
                status, degraded, wrong = 0, False, ""
                connection.close()
                await asyncio.sleep(0.05)
            self.answers.append(Answer(sent=sent, done=time.monotonic(), status=status, degraded=degraded, wrong=wrong))
            if status != 200:
                await asyncio.sleep(0.02)
        connection.close()


def targets(world: World, *, count: int, size: int, seed: int = 61) -> list[Target]:
    """Requests of known accounts with their scores, computed in this process from the rows that are online now."""
    from bench.serving_predict import Case

    made = []
    for at in range(count):
        case = Case(world, size, seed + at)
        made.append(Target(payments=case.payments, expected=case.expected()))
    return made
