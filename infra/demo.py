"""`ringfence demo`: the main job from simulated payments to scores over HTTP, with the same commands a user has."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from graph_features.clock import DAY_MS, from_ms
from graph_features.errors import RingfenceError
from graph_features.settings import PlatformSettings, Profile, load, services_env_file
from infra.client import key_headers
from infra.console import say, table

TRAIN_SHARE = 0.6
LABEL_WAIT = timedelta(days=7)
LIVE_ROWS = 1_000
READY_S = 120.0
RATES = '{"GBP": "1.17", "USD": "0.92"}'
"""What the simulated foreign payments are worth in the base currency, unless RINGFENCE_RATES says otherwise."""


class DemoError(RingfenceError):
    """A step of the demo failed; its own message stands above."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where the simulated days go: train, wait for labels, test; the last payments stay out, to be scored live."""

    data: Path
    start: datetime
    train_from: datetime
    train_to: datetime
    test_from: datetime
    test_to: datetime


@dataclass(kw_only=True)
class Steps:
    """Runs `ringfence` commands as a person would and remembers how long each took."""

    home: Path
    seconds: dict[str, float]

    def run(self, name: str, *arguments: str, quiet: bool = False) -> str:
        """Run a command; its progress shows, its output is returned. Raises DemoError with the command's exit code."""
        say(f"· {name}")
        started = time.perf_counter()
        command = [sys.executable, "-m", "infra.cli", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        self.seconds[name] = time.perf_counter() - started
        if done.returncode:
            raise DemoError(f"demo: `ringfence {' '.join(arguments)}` ended with exit code {done.returncode}")
        if not quiet and done.stdout.strip():
            say("  " + done.stdout.strip().splitlines()[-1])
        return done.stdout


def run(*, accounts: int, days: int, seed: int) -> None:
    """Run every step and print a summary; repeat it as often as you like, it changes nothing that is there."""
    os.environ.setdefault("RINGFENCE_RATES", RATES)
    platform = load(PlatformSettings)
    folder = platform.home / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    steps = Steps(home=platform.home, seconds={})
    with _servers(platform, steps):
        plan = _data(steps, folder / f"data-{accounts}-{days}-{seed}", accounts=accounts, days=days, seed=seed)
        _features(steps, plan)
        report = _model(steps, plan)
        with _server(platform) as url:
            replies = _score(url, plan.data / "live.json", steps)
    _summary(plan, report, replies, steps.seconds)


@contextmanager
def _servers(platform: PlatformSettings, steps: Steps) -> Iterator[None]:
    """In the services profile: the servers, started if they do not run, and stopped again if they were started here."""
    if platform.profile is not Profile.SERVICES:
        yield
        return
    from graph_features.settings import export_services_environment

    ran = subprocess.run([sys.executable, "-m", "infra.cli", "services", "status"], capture_output=True, check=False)
    steps.run("start PostgreSQL, Redis and Neo4j", "services", "up")
    assert services_env_file(platform.home).is_file()
    export_services_environment()
    try:
        yield
    finally:
        if ran.returncode:
            steps.run("stop the servers (the data stays)", "services", "down")


def _data(steps: Steps, folder: Path, *, accounts: int, days: int, seed: int) -> Plan:
    """Simulate once, keep the last payments back, ingest the rest."""
    if not (folder / "live.json").is_file():
        options = ["--accounts", str(accounts), "--days", str(days), "--seed", str(seed)]
        steps.run("simulate payments", "simulate", "--out", str(folder), *options)
        _hold_back(folder)
    steps.run("ingest payments", "ingest", str(folder / "past.parquet"))
    steps.run("ingest statuses", "ingest", str(folder / "past-statuses.parquet"), "--kind", "statuses", "--no-graph")
    steps.run("ingest labels", "ingest", str(folder / "past-labels.parquet"), "--kind", "labels", "--no-graph")
    steps.run("compare records and graph", "verify")
    return _plan(folder, days)


def _hold_back(folder: Path) -> None:
    """Split the newest payments off as a request body, with what was known before them as files to ingest."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    payments = pq.read_table(folder / "transactions.parquet").sort_by([("event_timestamp", "ascending")])
    past = payments.slice(0, payments.num_rows - LIVE_ROWS)
    live = payments.slice(payments.num_rows - LIVE_ROWS)
    boundary = live["event_timestamp"][0]
    pq.write_table(past, folder / "past.parquet")
    for name, time_column in (("statuses", "status_timestamp"), ("labels", "label_timestamp")):
        known = pq.read_table(folder / f"{name}.parquet")
        known = known.filter(pc.less(known[time_column], boundary))
        known = known.filter(pc.is_in(known["transaction_id"], value_set=past["transaction_id"].combine_chunks()))
        pq.write_table(known, folder / f"past-{name}.parquet")
    body = {"transactions": [_as_request(row) for row in live.to_pylist()]}
    temporary = folder / "live.json.tmp"
    temporary.write_text(json.dumps(body), encoding="utf-8")
    temporary.replace(folder / "live.json")


def _as_request(row: dict[str, Any]) -> dict[str, Any]:
    moment = row["event_timestamp"].astimezone(UTC).isoformat(timespec="milliseconds")
    kept = {name: value for name, value in row.items() if value is not None}
    return {**kept, "event_timestamp": moment.replace("+00:00", "Z"), "amount": str(row["amount"])}


def _plan(folder: Path, days: int) -> Plan:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    times = pq.read_table(folder / "past.parquet", columns=["event_timestamp"])["event_timestamp"]
    first, last = (int(moment.timestamp() * 1000) for moment in (pc.min(times).as_py(), pc.max(times).as_py()))
    start, end = from_ms(first - first % DAY_MS), from_ms(last + DAY_MS - last % DAY_MS)
    train_to = start + timedelta(days=int(days * TRAIN_SHARE))
    test_from = train_to + LABEL_WAIT
    # Labels of the last week are not known yet: what is tested lies before.
    return Plan(
        data=folder,
        start=start,
        train_from=start + timedelta(days=7),
        train_to=train_to,
        test_from=test_from,
        test_to=max(test_from + timedelta(days=3), end - LABEL_WAIT - timedelta(days=2)),
    )


def _features(steps: Steps, plan: Plan) -> None:
    steps.run("register features with Feast", "apply")
    period = ["--from", _day(plan.train_from), "--to", _day(plan.test_to), "--every", "1d"]
    steps.run("backfill features", "backfill", *period)
    live = json.loads((plan.data / "live.json").read_text(encoding="utf-8"))
    today = live["transactions"][0]["event_timestamp"][:10]
    steps.run("materialize features", "materialize", "--as-of", today)


def _model(steps: Steps, plan: Plan) -> dict[str, Any]:
    window = ["--from", _day(plan.train_from), "--to", _day(plan.train_to), "--label-cut", _day(plan.test_from)]
    test = ["--test-from", _day(plan.test_from), "--test-to", _day(plan.test_to)]
    output = steps.run("train the model", "train", *window, *test, "--reuse", "--json", quiet=True)
    report: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    steps.run("promote it", "promote", "--version", str(report["version"]), "--force")
    return report


@contextmanager
def _server(platform: PlatformSettings) -> Iterator[str]:
    """`ringfence serve` on a free port, ready to score; its log in the demo's folder."""
    import httpx

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = platform.home / "demo" / "serve.log"
    url = f"http://127.0.0.1:{port}"
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "infra.cli", "serve", "--port", str(port)]
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ)
        try:
            say(f"· serve on {url}")
            give_up = time.monotonic() + READY_S
            while not _is_ready(httpx, url):
                if process.poll() is not None or time.monotonic() > give_up:
                    raise DemoError(f"demo: the server did not become ready: see {log}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def _is_ready(httpx: Any, url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/health/ready", timeout=5).is_success)
    except httpx.TransportError:
        return False


def _score(url: str, body: Path, steps: Steps) -> list[dict[str, Any]]:
    """Score the held-back payments twice: features that are missing are computed for the first request."""
    import httpx

    replies = []
    for name in ("first request", "second request"):
        started = time.perf_counter()
        headers = {"content-type": "application/json", **key_headers()}
        reply = httpx.post(f"{url}/predict", content=body.read_bytes(), headers=headers, timeout=120)
        steps.seconds[f"score {LIVE_ROWS:,} payments, {name}"] = time.perf_counter() - started
        if reply.is_error:
            raise DemoError(f"demo: POST /predict was answered {reply.status_code}: {reply.text[:300]}")
        replies.append(reply.json())
    return replies


def _summary(plan: Plan, report: dict[str, Any], replies: Sequence[dict[str, Any]], seconds: dict[str, float]) -> None:
    import pyarrow.parquet as pq

    truth = {row["transaction_id"]: row["scenario"] for row in pq.read_table(plan.data / "truth.parquet").to_pylist()}
    scores = sorted(replies[-1]["scores"], key=lambda score: -score["fraud_score"])
    rows = [
        [score["transaction_id"], f"{score['fraud_score']:.3f}", score["decision"], truth.get(score["transaction_id"])]
        for score in scores[:10]
    ]
    table("the ten most suspicious payments of the newest thousand", ["payment", "score", "decision", "planted"], rows)
    test = report["test"]
    say(
        f"model version {report['version']}: average precision {test['average_precision']:.3f} on "
        f"{test['payments']:,.0f} payments from {_day(plan.test_from)} to {_day(plan.test_to)}, "
        f"{test['frauds']:,.0f} of them fraudulent ({test['frauds'] / test['payments']:.3f} is what guessing gets); "
        f"ROC AUC {test['roc_auc']:.3f}"
    )
    table("timings", ["step", "seconds"], [[name, f"{value:.2f}"] for name, value in seconds.items()])
    profile = load(PlatformSettings).profile
    suffix = "" if profile is Profile.EMBEDDED else f" PROFILE={profile}"
    say(f"next: `make serve{suffix}` and http://localhost:8000/docs; `ringfence features`; docs/ and README.md")


def _day(moment: datetime) -> str:
    return moment.date().isoformat()
