"""From files to scores with the real commands and the real server, on both profiles."""

from __future__ import annotations

import os
import signal
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
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from infra.client import key_headers

RATES = '{"GBP": "1.17", "USD": "0.92"}'
ACCOUNTS, DAYS, SEED = 400, 40, 5
READY_S = 120
TIMES = {"transactions": "event_timestamp", "statuses": "status_timestamp", "labels": "label_timestamp"}


@dataclass(frozen=True)
class Ringfence:
    """The console command with an environment of its own."""

    environment: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("ringfence")), *arguments]
        return subprocess.Popen(
            command, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def __call__(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=400)
        assert process.returncode == code, f"{arguments}: exit {process.returncode}\n{output}\n{errors}"
        assert "Traceback" not in errors
        return output + errors


@pytest.fixture(params=["embedded", pytest.param("services", marks=pytest.mark.services)])
def ringfence(request: pytest.FixtureRequest, tmp_path: Path) -> Ringfence:
    if request.param == "services":
        environment = dict(request.getfixturevalue("services_environment"))
    else:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RINGFENCE_", "MLFLOW_", "FEAST_"))}
        environment = {**inherited, "RINGFENCE_HOME": str(tmp_path / "home")}
    small = {"RINGFENCE_RATES": RATES, "RINGFENCE_TRAIN_EPOCHS": "4", "RINGFENCE_WORKERS": "2"}
    return Ringfence({**environment, **small})


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """A simulated history by kind of row, each in order of time."""
    from infra.simulator import simulate

    out = tmp_path_factory.mktemp("history")
    simulate(accounts=ACCOUNTS, days=DAYS, seed=SEED, out=out)
    return {kind: pq.read_table(out / f"{kind}.parquet").sort_by(column) for kind, column in TIMES.items()}


def write_known(history: Mapping[str, pa.Table], before: datetime, folder: Path) -> dict[str, Path]:
    """Files of what had happened or become known before an instant."""
    paths = {}
    for kind, table in history.items():
        column = table[TIMES[kind]]
        paths[kind] = folder / f"{kind}.parquet"
        pq.write_table(table.filter(pc.less(column, pa.scalar(before, column.type))), paths[kind])
    return paths


def ingest(ringfence: Ringfence, paths: Mapping[str, Path]) -> None:
    for kind in TIMES:
        ringfence("ingest", str(paths[kind]), "--kind", kind, "--no-graph")
    ringfence("sync")


@contextmanager
def server(ringfence: Ringfence) -> Iterator[httpx.Client]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = ringfence.start("serve", "--port", str(port))
    try:
        headers = key_headers(ringfence.environment)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=headers) as client:
            give_up = time.monotonic() + READY_S
            while time.monotonic() < give_up and process.poll() is None and not is_ready(client):
                time.sleep(0.2)
            assert is_ready(client), client.get("/health").text if process.poll() is None else process.communicate()[1]
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").is_success
    except httpx.TransportError:
        return False


def day(moment: datetime) -> str:
    return moment.date().isoformat()


def as_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a history file as the REST API takes it."""

    def text(value: Any) -> Any:
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return value

    kept = {name: text(value) for name, value in row.items() if value is not None}
    return {**kept, **({"amount": str(row["amount"])} if "amount" in row else {})}


def post(client: httpx.Client, path: str, name: str, rows: list[dict[str, Any]]) -> Any:
    if not rows:
        return None
    reply = client.post(path, json={name: [as_json(row) for row in rows]})
    assert reply.is_success, reply.text
    return reply.json()


def batches(payments: list[dict[str, Any]], statuses: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Payments that may be scored and ingested together.

    No account comes back at a later time, no status of one of them becomes known before the last, no tie is torn apart.
    """
    known_at = {row["transaction_id"]: row["status_timestamp"] for row in reversed(statuses)}
    batch: list[dict[str, Any]] = []
    seen: set[str] = set()
    for moment, group in groupby(payments, key=lambda payment: payment["event_timestamp"]):
        tie = list(group)
        ends = {end for payment in tie for end in (payment["sender_id"], payment["receiver_id"])}
        learned = any(known_at.get(earlier["transaction_id"], moment) < moment for earlier in batch)
        if batch and (ends & seen or learned):
            yield batch
            batch, seen = [], set()
        batch += tie
        seen |= ends
    yield batch


def replay(client: httpx.Client, history: Mapping[str, pa.Table], start: datetime) -> dict[str, float]:
    """Score each payment from `start` on before it is ingested; statuses and labels come when they become known."""
    rows = {kind: [row for row in table.to_pylist() if row[TIMES[kind]] >= start] for kind, table in history.items()}
    scores: dict[str, float] = {}
    later = {row["transaction_id"] for row in rows["transactions"]}
    for batch in batches(rows["transactions"], rows["statuses"]):
        until = batch[-1]["event_timestamp"]
        for kind in ("statuses", "labels"):
            due = [r for r in rows[kind] if r[TIMES[kind]] < until and (r["transaction_id"] not in later)]
            rows[kind] = [row for row in rows[kind] if row not in due]
            post(client, f"/{kind}", kind, due)
        for score in post(client, "/predict", "transactions", batch)["scores"]:
            assert score["degraded"] == []
            scores[score["transaction_id"]] = score["fraud_score"]
        post(client, "/transactions", "transactions", batch)
        later -= {payment["transaction_id"] for payment in batch}
    return scores


def test_from_files_to_scores(ringfence: Ringfence, history: dict[str, pa.Table], tmp_path: Path) -> None:
    """The whole way works, may be repeated, and the live scores of a day equal its batch evaluation to 1e-6."""
    first = history["transactions"]["event_timestamp"][0].as_py()
    last = history["transactions"]["event_timestamp"][-1].as_py()
    start = datetime.combine(first.date(), datetime.min.time(), UTC)
    today = datetime.combine(last.date(), datetime.min.time(), UTC)
    known = write_known(history, today, tmp_path)

    ringfence("apply")
    ingest(ringfence, known)
    again = ringfence("ingest", str(known["transactions"]))
    assert " 0 new" in again
    assert "no difference" in ringfence("verify")

    period = ["--from", day(start + timedelta(days=5)), "--to", day(today)]
    ringfence("backfill", *period, "--every", "1d")
    ringfence("materialize", "--as-of", day(today))
    days = {name: day(start + timedelta(days=n)) for name, n in (("from", 5), ("validation", 27), ("to", 31))}
    ringfence("train", "--from", days["from"], "--validation-from", days["validation"], "--to", days["to"])
    ringfence("promote", "--force")

    with server(ringfence) as client:
        live = replay(client, history, today)
        health = client.get("/health").json()
        assert health["status"] == "ok", health
    assert len(live) > 50

    # The labels of that day come a week later; then it can be evaluated in batch.
    labels = tmp_path / "rest.parquet"
    pq.write_table(history["labels"], labels)
    ringfence("ingest", str(labels), "--kind", "labels")
    assert "no difference" in ringfence("verify")
    tomorrow = day(today + timedelta(days=1))
    scores = tmp_path / "scores.parquet"
    ringfence("evaluate", "--from", day(today), "--to", tomorrow, "--scores", str(scores))
    batch = {row["transaction_id"]: row["fraud_score"] for row in pq.read_table(scores).to_pylist()}
    wrong = {one: (live[one], batch[one]) for one in live if abs(live[one] - batch[one]) > 1e-6}
    assert not wrong, f"{len(wrong)} of {len(live)} differ"


def test_ingest_killed_half_way_is_completed_by_the_next(
    ringfence: Ringfence, history: dict[str, pa.Table], tmp_path: Path
) -> None:
    """After kill -9 in the middle, ingesting again leaves what one undisturbed run would have left."""
    path = tmp_path / "payments.parquet"
    pq.write_table(history["transactions"], path)
    process = ringfence.start("ingest", str(path), "--chunk-rows", "200", "--no-graph")
    time.sleep(2.5)
    process.kill()
    process.communicate()
    output = ringfence("ingest", str(path), "--chunk-rows", "5000")
    assert f"{history['transactions'].num_rows:,} rows" in output
    assert "no difference" in ringfence("verify")
    again = ringfence("ingest", str(path))
    assert f"0 new, {history['transactions'].num_rows:,} known, 0 rejected" in again
