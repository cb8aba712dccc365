"""Load whose every answer is checked: scores against those computed beforehand, by hand, from the same rows."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.http_load import Connection, post
from bench.serving_world import World

TOLERANCE = 1e-6
NOT_OVER_S = 30.0
QUIET_S = 2.0
"""All is well when nothing has gone wrong for so long."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request: when it was sent and answered (time.monotonic), its status (0: no answer), what was wrong.

    Of a 200 `request_id` and `scores`, (transaction_id, score) in their order; of anything else `detail`.
    """

    sent: float
    done: float
    status: int
    degraded: bool = False
    wrong: str = ""
    request_id: str = ""
    scores: tuple[tuple[str, float], ...] = ()
    detail: str = ""

    @property
    def good(self) -> bool:
        return self.status == 200 and not self.degraded and not self.wrong


@dataclass(frozen=True, kw_only=True)
class Target:
    """A request, and the scores that it must get while nothing is missing: None where its accounts keep changing."""

    payments: list[dict[str, Any]]
    expected: list[float] | None

    @property
    def request(self) -> bytes:
        return post("/predict", json.dumps({"transactions": self.payments}).encode())

    def answer(self, sent: float, status: int, body: bytes) -> Answer:
        """What is to be said of this answer."""
        done = time.monotonic()
        if status != 200:
            problem = json.loads(body) if body.startswith(b"{") else {}
            wrong = "" if problem.get("status") == status else f"status {status} without a problem document"
            return Answer(sent=sent, done=done, status=status, wrong=wrong, detail=problem.get("detail", ""))
        reply = json.loads(body)
        scores = tuple((score["transaction_id"], score["fraud_score"]) for score in reply["scores"])
        degraded = [bool(score["degraded"]) for score in reply["scores"]]
        return Answer(
            sent=sent,
            done=done,
            status=status,
            degraded=any(degraded),
            wrong=self._wrong(scores, degraded),
            request_id=reply["request_id"],
            scores=scores,
        )

    def _wrong(self, scores: tuple[tuple[str, float], ...], degraded: list[bool]) -> str:
        if [one for one, _ in scores] != [payment["transaction_id"] for payment in self.payments]:
            return "other payments, or in another order"
        if self.expected is None:
            return ""
        for (one, score), expected, without in zip(scores, self.expected, degraded, strict=True):
            if not without and abs(score - expected) > TOLERANCE:
                return f"{one}: {score}, expected {expected}"
        return ""


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

    def recovered(self, moment: float, *, limit_s: float) -> float:
        """Seconds from `moment` to the first good answer after the last bad one; `limit_s` where they do not end.

        Waits until nothing has gone wrong for QUIET_S.
        """
        while time.monotonic() < moment + limit_s:
            time.sleep(0.05)
            since = sorted((one for one in list(self.answers) if one.done >= moment), key=lambda one: one.done)
            bad = max((at for at, one in enumerate(since) if not one.good), default=-1)
            good = since[bad + 1 :]
            if len(good) >= 3 and time.monotonic() - max(moment, since[bad].done if bad >= 0 else 0.0) >= QUIET_S:
                return good[0].done - moment
        return limit_s

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
                answer = self.targets[which].answer(sent, status, body)
            except (OSError, EOFError, TimeoutError) as error:
                answer = Answer(sent=sent, done=time.monotonic(), status=0, detail=type(error).__name__)
                connection.close()
                await asyncio.sleep(0.05)
            self.answers.append(answer)
            if answer.status != 200:
                await asyncio.sleep(0.02)
        connection.close()


def targets(world: World, *, count: int, size: int, seed: int = 61) -> tuple[list[Target], list[dict[str, Any]]]:
    """Requests of known accounts with their scores, computed in this process from the rows that are online now.

    The second are `size` payments of other accounts, for somebody to make more of: every seventh request scores them.
    """
    still = [_still(world, size, seed + at) for at in range(count)]
    used = {payment[name] for target in still for payment in target.payments for name in ("sender_id", "receiver_id")}
    others = _apart(world.transactions(100 * size, seed - 1), used)
    changing = [next(others) for _ in range(size)]
    moving = Target(payments=changing, expected=None)
    return [one for at, target in enumerate(still) for one in ([target, moving] if at % 6 == 5 else [target])], changing


def _still(world: World, size: int, seed: int) -> Target:
    """A request whose rows are all online and usable as they stand: what its scores must be can be told beforehand."""
    from bench.serving_predict import Case

    case = Case(world, 2 * size, seed)
    scored = case.scored()
    usable = np.asarray(~scored.state.any(axis=0))
    chosen = np.flatnonzero(usable[: 2 * size] & usable[2 * size :])[:size].tolist()
    return Target(payments=[case.payments[at] for at in chosen], expected=[float(scored.score[at]) for at in chosen])


def _apart(payments: list[dict[str, Any]], used: set[str]) -> Any:
    """Those payments whose accounts are neither in `used` nor in one of the others."""
    for payment in payments:
        accounts = {payment["sender_id"], payment["receiver_id"]}
        if not accounts & used:
            used = used | accounts
            yield payment


Prove = Callable[[Shooter], str]
"""Makes a fault, and says what shows that it was one."""
