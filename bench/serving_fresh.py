"""How long what is missing or new takes: cold accounts through Route 1, and writes until they are online."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timedelta
from typing import Any

import httpx
import numpy as np

from bench.http_load import KEY, Load, closed_loop, once, post
from bench.report import Figure
from bench.serving_load import requests
from bench.serving_world import World, serving
from bench.timing import note
from graph_features.catalog import catalog
from graph_features.clock import from_ms

COLD = {1: 7, 100: 5, 1_000: 3}
"""Accounts of one request, and how often."""

WRITES = 40
STEP_MS = 20
"""From a payment to the next by their own times: thousands of runs fit into the hour before the instant scored at."""

FRESH_GOAL_S = 1.0
DEADLINE_MS = 20_000


def cold(world: World, *, seconds: float, rounds: int) -> list[Figure]:  # noqa: ARG001 - counted in requests
    """Part `cold`: /predict when nothing of the senders is online; every row must be there in the end."""
    figures = []
    with serving(world, deadline_ms=DEADLINE_MS) as server:
        once(server.url, requests(world, 1, 1, seed=50)[0])
        for count, times in COLD.items():
            took = []
            for at in range(times):
                rows = world.transactions(count, seed=500 + 10 * count + at)
                _forget(world, [row["sender_id"] for row in rows])
                begun = time.perf_counter()
                reply = json.loads(once(server.url, post("/predict", json.dumps({"transactions": rows}).encode())))
                took.append(time.perf_counter() - begun)
                degraded = [item for score in reply["scores"] for item in score["degraded"]]
                assert not degraded, f"degraded: {degraded[:3]}"
                assert reply["routes"]["feature_engineering"] > 0, "nothing was cold"
            note(f"  {count} cold: {' '.join(f'{one:.3f}' for one in took)} s")
            figures.append(
                Figure(
                    name=f"/predict of {count}, senders cold", value=float(np.median(took)) * 1e3, unit="ms",
                    conditions=f"no event row of any sender online, one feature worker; median of {times}",
                )
            )  # fmt: skip
    return figures


def _forget(world: World, accounts: list[str]) -> None:
    """Remove the online event rows of accounts."""
    keys = [(account,) for account in dict.fromkeys(accounts)]
    for view in catalog().event_views():
        if view.entity == "account":
            world.online.delete(view, keys)


def freshness(world: World, *, seconds: float, rounds: int) -> list[Figure]:  # noqa: ARG001 - counted in writes
    """Part `freshness`: from sending a payment or a label until its value is read back, with scoring going on."""
    sent = requests(world, 200, 20, seed=51)
    with serving(world) as server:
        once(server.url, sent[0])
        stop = threading.Event()
        loads: list[Load] = []

        def score() -> None:
            while not stop.is_set():
                loads.append(closed_loop(server.url, sent, connections=1, seconds=2.0))

        background = threading.Thread(target=score)
        background.start()
        try:
            with httpx.Client(base_url=server.url, timeout=60, headers={"X-API-Key": KEY}) as http:
                paid, labelled = _write_and_read(world, http)
        finally:
            stop.set()
            background.join()
    note(f"  beside {np.mean([one.per_second for one in loads]):.1f} requests/s of 20 payments")
    for what, taken in (("payments", paid), ("labels", labelled)):
        slowest = sorted(((one, at) for at, one in enumerate(taken)), reverse=True)[:3]
        note(f"  slowest {what}: {', '.join(f'{one:.2f} s (write {at})' for one, at in slowest)}")
    shown = f"{WRITES} writes of one row, one after the other, beside one client that scores 20 payments a request"
    return [
        Figure(name=f"{what} until online: {name}", value=float(np.quantile(taken, share)), unit="s",
               goal=FRESH_GOAL_S if share == 0.99 else None, conditions=shown)
        for what, taken in (("payment", paid), ("label", labelled))
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ]  # fmt: skip


def _write_and_read(world: World, http: httpx.Client) -> tuple[list[float], list[float]]:
    paid, labelled = [], []
    # Later than all that is known, as news are, and before the instant that others score at: no row they read is of the
    # future, in this run or in the next one on the same servers.
    start_ms = max(world.newest_ms, world.payments.end_ms) + STEP_MS
    if start_ms + WRITES * STEP_MS > world.now_ms:
        note(
            "  payments of earlier runs lie after the instant that is scored at: rows have to be computed for the past"
        )
    for at in range(WRITES):
        (row,) = world.transactions(1, seed=700 + at)
        moment = from_ms(start_ms + at * STEP_MS)
        one = f"fresh-{time.time_ns()}"
        row |= {"transaction_id": one, "event_timestamp": _text(moment)}
        paid.append(_until(http, "/transactions?refresh=async", {"transactions": [row]}, row["sender_id"], "activity"))
        known = moment + timedelta(milliseconds=STEP_MS // 2)
        label: dict[str, Any] = {
            "transaction_id": one, "is_fraud": True, "label_timestamp": _text(known), "fraud_party": "both",
        }  # fmt: skip
        labelled.append(_until(http, "/labels?refresh=async", {"labels": [label]}, row["sender_id"], "exposure"))
    return paid, labelled


def _until(http: httpx.Client, path: str, body: dict[str, Any], account: str, view: str) -> float:
    """Seconds from sending `body` until the account's row is a newer one and nothing is pending."""
    read = f"/features?ids={account}&features=account_{view}:*"
    before = http.get(read).raise_for_status().json()["rows"][0]["event_timestamps"]
    begun = time.perf_counter()
    http.post(path, json=body).raise_for_status()
    while time.perf_counter() - begun < 60:
        row = http.get(read).raise_for_status().json()["rows"][0]
        if row["event_timestamps"] != before and not row["pending"]:
            break
        time.sleep(0.005)
    return time.perf_counter() - begun


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
