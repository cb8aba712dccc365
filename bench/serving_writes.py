"""Payments and labels that are sent while something else goes on, each again and again until it is accepted."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from bench.http_load import KEY
from bench.serving_world import World
from graph_features.clock import from_ms
from graph_features.sources.postgres import PostgresRecords

EVERY_S = 1.0
AGAIN_S = 0.5
TIMEOUT_S = 10.0
STEP_MS = 100
LABEL_MS = 50
"""A payment happens so long after the one before, and is labelled so long after itself."""


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A payment that was answered with 200, when (time.monotonic), and when its label was: None if it was not."""

    transaction_id: str
    sender_id: str
    receiver_id: str
    event_ms: int
    at: float
    labelled_at: float | None


class Writer(threading.Thread):
    """Sends a payment and then its label every second, one like `rows` after the other, in order of their time.

    A client that is refused, or gets no answer, sends the same again: what it was not told may have been stored. The
    payments lie between what is known and the instant for which payments are scored.
    """

    def __init__(self, world: World, url: str, rows: Sequence[dict[str, Any]]) -> None:
        super().__init__(daemon=True, name="writer")
        self.statuses: dict[int, int] = {}
        self.accepted: list[Accepted] = []
        self._rows = rows
        self._end_ms = world.now_ms
        self._event_ms = max(world.payments.end_ms, _last_event_ms(world))
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, headers={"X-API-Key": KEY})
        self._done = threading.Event()

    def run(self) -> None:
        with self._http:
            while not self._done.wait(EVERY_S):
                self._write(self._rows[len(self.accepted) % len(self._rows)])

    def stop(self) -> None:
        """Send no more; what is under way is tried once more."""
        self._done.set()
        self.join()

    def _write(self, like: dict[str, Any]) -> None:
        self._event_ms += STEP_MS
        if self._event_ms + LABEL_MS >= self._end_ms:
            raise RuntimeError("this home has taken all the payments that it can: begin with a new one")
        one = f"w-{time.time_ns()}"
        row = {**like, "transaction_id": one, "event_timestamp": _text(self._event_ms)}
        label = {"transaction_id": one, "is_fraud": False, "label_timestamp": _text(self._event_ms + LABEL_MS)}
        at = self._until_accepted("/transactions", {"transactions": [row]})
        if at is None:
            return
        labelled_at = self._until_accepted("/labels", {"labels": [label]})
        self.accepted.append(
            Accepted(
                transaction_id=one,
                sender_id=row["sender_id"],
                receiver_id=row["receiver_id"],
                event_ms=self._event_ms,
                at=at,
                labelled_at=labelled_at,
            )
        )

    def _until_accepted(self, path: str, body: dict[str, Any]) -> float | None:
        """When it was accepted; None where the writer was stopped first."""
        while True:
            last = self._done.is_set()
            try:
                status = self._http.post(f"{path}?refresh=async", json=body).status_code
            except httpx.TransportError:
                status = 0
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == httpx.codes.OK:
                return time.monotonic()
            if last:
                return None
            self._done.wait(AGAIN_S)


def _text(ms: int) -> str:
    return from_ms(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _last_event_ms(world: World) -> int:
    records = PostgresRecords(world.services.postgres)
    found = records.event_range_ms()
    records.close()
    return 0 if found is None else found[1]
