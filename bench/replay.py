"""Replays payments through the REST API in time order and lays the scores beside those of the batch evaluation."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.report import Figure
from infra.client import key_headers

LABEL_DELAY = timedelta(days=7)
TOLERANCE = 1e-6
LARGEST_BATCH = 500
START_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Payments that can be scored together: no account appears twice, but in ties, which may not see each other."""

    payments: list[dict[str, Any]]
    times: list[datetime]


def payment(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "transaction_id": str(row["TRANSACTION_ID"]),
        "event_timestamp": row["TX_DATETIME"].isoformat().replace("+00:00", "Z"),
        "sender_id": f"c{row['CUSTOMER_ID']}",
        "receiver_id": f"t{row['TERMINAL_ID']}",
        "amount": f"{row['TX_AMOUNT']:.2f}",
        "currency": "EUR",
    }


def label(row: Mapping[str, Any]) -> dict[str, Any]:
    known = row["TX_DATETIME"] + LABEL_DELAY
    return {
        "transaction_id": str(row["TRANSACTION_ID"]),
        "is_fraud": bool(row["TX_FRAUD"]),
        "label_timestamp": known.isoformat().replace("+00:00", "Z"),
        "fraud_party": "both",
    }


def batches(rows: list[dict[str, Any]]) -> Iterator[Batch]:
    """Cut rows (in time order) where an account comes back at a later time, and at midnight; never inside a tie."""
    payments: list[dict[str, Any]] = []
    times: list[datetime] = []
    seen: set[str] = set()
    for moment, group in groupby(rows, key=lambda row: row["TX_DATETIME"]):
        tie = [payment(row) for row in group]
        ends = {made[side] for made in tie for side in ("sender_id", "receiver_id")}
        full = len(payments) + len(tie) > LARGEST_BATCH
        if payments and (ends & seen or full or times[-1].date() != moment.date()):
            yield Batch(payments=payments, times=times)
            payments, times, seen = [], [], set()
        payments += tie
        times += [moment] * len(tie)
        seen |= ends
    if payments:
        yield Batch(payments=payments, times=times)


def read(data: Path, start: datetime, end: datetime) -> list[dict[str, Any]]:
    table = pq.read_table(data)
    times = table["TX_DATETIME"]
    kept = pc.and_(pc.greater_equal(times, pa.scalar(start, times.type)), pc.less(times, pa.scalar(end, times.type)))
    rows: list[dict[str, Any]] = (
        table.filter(kept).sort_by([("TX_DATETIME", "ascending"), ("TRANSACTION_ID", "ascending")]).to_pylist()
    )
    for row in rows:
        row["TX_DATETIME"] = row["TX_DATETIME"].replace(tzinfo=UTC)
    return rows


@contextmanager
def server(environment: Mapping[str, str]) -> Iterator[httpx.Client]:
    """`ringfence serve` on a free port, ready; ended by SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("ringfence")), "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=dict(environment))
    try:
        headers = key_headers(environment)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, headers=headers) as client:
            _await_ready(client, process)
            yield client
    finally:
        process.terminate()
        process.wait(timeout=60)


def _await_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < give_up:
        try:
            if client.get("/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready within {START_S:.0f} s (exit status {process.poll()})")


def post(client: httpx.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    reply = client.post(path, json=body)
    if reply.is_error:
        raise RuntimeError(f"POST {path}: {reply.status_code} {reply.text[:500]}")
    document: dict[str, Any] = reply.json()
    return document


def slice_at(client: httpx.Client, moment: datetime) -> None:
    """Run the slice job of `moment` and wait for it."""
    job = post(client, "/jobs", {"kind": "materialize", "parameters": {"as_of": moment.isoformat()}})["job"]
    while job["state"] not in {"done", "failed", "cancelled"}:
        time.sleep(0.2)
        job = client.get(f"/jobs/{job['id']}").raise_for_status().json()["job"]
    if job["state"] != "done":
        raise RuntimeError(f"the slice job of {moment:%Y-%m-%d} ended {job['state']}: {job.get('error')}")


def play(client: httpx.Client, rows: list[dict[str, Any]], labels: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Score, then ingest, batch by batch; labels first, as they become known; slices at midnight."""
    scores: dict[str, dict[str, Any]] = {}
    due = 0
    today = rows[0]["TX_DATETIME"].date()
    for batch in batches(rows):
        if batch.times[0].date() != today:
            today = batch.times[0].date()
            midnight = datetime.combine(today, datetime.min.time(), UTC)
            due = _post_labels(client, labels, due, midnight)
            slice_at(client, midnight)
        due = _post_labels(client, labels, due, batch.times[-1])
        for score in post(client, "/predict", {"transactions": batch.payments})["scores"]:
            scores[score["transaction_id"]] = score
        post(client, "/transactions", {"transactions": batch.payments})
    return scores


def _post_labels(client: httpx.Client, labels: list[dict[str, Any]], due: int, before: datetime) -> int:
    end = due
    while end < len(labels) and labels[end]["TX_DATETIME"] + LABEL_DELAY < before:
        end += 1
    for start in range(due, end, LARGEST_BATCH):
        chunk = labels[start : min(end, start + LARGEST_BATCH)]
        post(client, "/labels", {"labels": [label(row) for row in chunk]})
    return end


def replay(data: Path, batch_scores: Path, environment: Mapping[str, str], *, start: datetime, n: int) -> list[Figure]:
    """Replay the first `n` payments from `start` on; return how the scores differ from `batch_scores`."""
    rows = read(data, start, start + timedelta(days=7))[:n]
    labels = read(data, start - LABEL_DELAY, rows[-1]["TX_DATETIME"] - LABEL_DELAY + timedelta(seconds=1))
    began = time.perf_counter()
    with server({**os.environ, **environment}) as client:
        live = play(client, rows, labels)
    seconds = time.perf_counter() - began
    table = pq.read_table(batch_scores, columns=["transaction_id", "fraud_score"])
    expected = dict(zip(*(table[name].to_pylist() for name in ("transaction_id", "fraud_score")), strict=True))
    ids = [str(row["TRANSACTION_ID"]) for row in rows]
    difference = np.array([abs(live[one]["fraud_score"] - expected[one]) for one in ids])
    for position in np.flatnonzero(difference > TOLERANCE)[:20]:
        one = ids[position]
        sys.stderr.write(f"{one}: live {live[one]}, batch {expected[one]}\n")
    degraded = sum(bool(live[one]["degraded"]) for one in ids)
    return [
        Figure(name="replayed payments", value=len(ids), unit="payments", better="higher"),
        Figure(name="replayed labels", value=len(labels), unit="labels", better="higher"),
        Figure(name="replay speed", value=len(ids) / seconds, unit="payments/s", better="higher"),
        Figure(name="largest difference of scores", value=float(difference.max()), unit="", goal=TOLERANCE),
        Figure(name="scores that differ", value=int((difference > TOLERANCE).sum()), unit="payments", goal=0),
        Figure(name="degraded scores", value=degraded, unit="payments", goal=0),
    ]
