"""The real server as a process of its own, embedded profile: a newcomer's day, bad input, killed workers, stops."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(start_server: Any) -> Any:
    return start_server(RINGFENCE_WORKERS="2", RINGFENCE_SERVING_MAX_BATCH="500", RINGFENCE_SERVING_SHARD_ROWS="50")


def payment(id_: str, sender: str, receiver: str, when: str = "2026-03-01T12:00:00Z", **more: Any) -> dict[str, Any]:
    row = {"transaction_id": id_, "event_timestamp": when, "sender_id": sender, "receiver_id": receiver}
    return {**row, "amount": 25.5, "currency": "EUR", **more}


def scores(server: Any, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    reply = server.http.post("/predict", json={"transactions": list(rows)})
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["scores"]
    return found


def test_01_server_starts_without_a_model(server: Any) -> None:
    """Without a model the server is alive, not ready, and /predict says to promote one; ingest works."""
    assert server.http.get("/health/ready").status_code == 503
    reply = server.http.post("/predict", json={"transactions": [payment("t", "a", "b")]})
    assert reply.status_code == 503
    assert "promote" in reply.json()["detail"] or "try again" in reply.json()["detail"]
    assert reply.headers["retry-after"]
    rows = [payment(f"h{at}", f"c{at % 5}", f"m{at % 3}", f"2026-02-{1 + at % 27:02d}T08:00:00Z") for at in range(60)]
    accepted = server.http.post("/transactions", json={"transactions": rows})
    assert accepted.status_code == 200, accepted.text
    assert (accepted.json()["inserted"], accepted.json()["refreshed"]) == (60, "done")


def test_02_promoted_model_comes_into_use(server: Any) -> None:
    """A model that is promoted while the server runs makes it ready, without a restart."""
    version = server.promote(seed=1)
    server.until(lambda: server.answers("/health/ready"), 120)
    reply = server.http.post("/predict", json={"transactions": [payment("t", "c0", "m0")]})
    assert reply.json()["model"] == {"name": "ringfence", "version": version, "alias": "champion"}
    assert server.http.get("/health").json()["status"] == "ok"


def test_03_scores_rest_on_the_stored_rows(server: Any) -> None:
    """A score over HTTP is what the bundle gives for the rows in the online store, to 1e-6."""
    import numpy as np

    from graph_features.stores.sqlite import SqliteOnlineStore
    from graph_features.tuples import TransactionColumns, TupleBlocks, build_tuples, row_requests
    from training.bundle import Bundle

    pairs = [(f"c{at % 5}", f"m{at % 3}") for at in range(120)]
    rows = [payment(f"s{at}", *pair) for at, pair in enumerate(pairs)]
    found = scores(server, *rows)
    assert [score["transaction_id"] for score in found] == [row["transaction_id"] for row in rows]
    assert all(score["unseen"] == [] for score in found)
    version = server.http.get("/health").json()["checks"]["model"]["detail"]["version"]
    bundle = Bundle.load(server.home / "models" / "ringfence" / version)
    payments = TransactionColumns.from_mapping(
        {
            "event_timestamp": np.full(len(pairs), 1_772_366_400_000),
            "sender_id": [sender for sender, _ in pairs],
            "receiver_id": [receiver for _, receiver in pairs],
            "amount_base": np.full(len(pairs), 2550),
        }
    )
    store = SqliteOnlineStore(server.home / "online.sqlite", project="ringfence")
    values = store.read(row_requests(bundle.info.inputs, payments))
    store.close()
    blocks = TupleBlocks.from_packed(bundle.info.inputs, values)
    expected = bundle.score(build_tuples(bundle.info.inputs, payments, blocks))
    assert np.abs(np.array([score["fraud_score"] for score in found]) - expected).max() < 1e-6


def test_04_whole_graph_rows_come_with_a_job(server: Any) -> None:
    """Before the first slice its views are named in degraded; the job over REST computes them, then nothing is."""
    row = payment("s0", "c1", "m1", "2026-03-01T12:00:00Z")
    before = scores(server, row)[0]["degraded"]
    assert before
    assert {item["cause"] for item in before} == {None}
    job = server.http.post("/jobs", json={"kind": "slices", "parameters": {"as_of": "2026-03-01T00:00:00Z"}})
    assert job.status_code == 202, job.text
    url = job.headers["location"]
    server.until(lambda: server.http.get(url).json()["job"]["state"] in ("done", "failed"), 180)
    assert server.http.get(url).json()["job"]["state"] == "done", server.http.get(url).text
    assert scores(server, row)[0]["degraded"] == []


def test_05_unknown_accounts_are_scored_and_said_so(server: Any) -> None:
    """An account that never was gets a score, and the reply says that it was never seen."""
    found = scores(server, payment("u1", "nobody", "m1"), payment("u2", "nobody", "no-one"))
    assert [score["unseen"] for score in found] == [["sender"], ["sender", "receiver"]]
    assert all(0 <= score["fraud_score"] <= 1 for score in found)


def test_06_what_was_ingested_is_in_the_next_score(server: Any) -> None:
    """After POST /transactions the next score of the account rests on a row of that very payment."""
    before, again = scores(server, payment("f0", "c2", "m2"))[0], scores(server, payment("f0", "c2", "m2"))[0]
    assert before["fraud_score"] == again["fraud_score"]
    rows = [payment("n1", "c2", "m2", "2026-03-01T11:00:00Z", amount="999.99")]
    assert server.http.post("/transactions", json={"transactions": rows}).json()["inserted"] == 1
    after = scores(server, payment("f0", "c2", "m2"))[0]
    assert after["features_as_of"]["sender"] == "2026-03-01T11:00:00.001Z"
    assert after["fraud_score"] != before["fraud_score"]
    assert not [item for item in after["degraded"] if item["reason"] == "stale"]


def test_07_payments_of_the_past_see_the_past(server: Any) -> None:
    """A payment before an account's last event is scored as of its own time, and nothing changes online."""
    features = server.http.get("/features?ids=c2").json()["rows"][0]
    past = scores(server, payment("p0", "c2", "m2", "2026-02-10T12:00:00Z"))[0]
    assert past["features_as_of"]["sender"] < "2026-02-10T12:00:00Z"
    assert server.http.get("/features?ids=c2").json()["rows"][0] == features
    first = scores(server, payment("p1", "c2", "m2", "2026-01-01T00:00:00Z"))[0]
    assert first["unseen"] == ["sender", "receiver"]


def test_08_decisions_are_kept(server: Any) -> None:
    """Each score can be looked up by its transaction, with the rows that it rests on."""
    record = server.http.get("/decisions/f0").json()["decisions"][0]
    assert record["inputs"]["sender_id"] == "c2"
    assert record["rows"]["sender"]["account_activity"][1] > 0
    assert server.http.get("/decisions/never-scored").status_code == 404


def curl_lines(page: Path) -> list[str]:
    """The curl commands of a page, over as many lines as their quotes are open."""
    commands: list[str] = []
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```(?:console|sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        pending = ""
        for line in block.splitlines():
            pending = f"{pending}\n{line}" if pending else line if line.startswith("curl ") else ""
            with suppress(ValueError):
                if pending and shlex.split(pending):
                    commands.append(pending)
                    pending = ""
    return commands


@pytest.mark.parametrize("name", ["README.md", "docs/rest-api.md"])
def test_08_curl_lines_of_the_documentation_run_as_they_stand(server: Any, name: str) -> None:
    """Each curl command is answered with a reply, not with a problem, in the order of the page."""
    commands = curl_lines(ROOT / name)
    assert commands
    for command in commands:
        pasted = command.replace("localhost:8000", f"127.0.0.1:{server.port}")
        done = subprocess.run(["/bin/sh", "-c", pasted], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (command, done.stderr)
        assert "urn:ringfence:problem" not in done.stdout, (command, done.stdout)
        assert isinstance(json.loads(done.stdout), dict)


def body(**changes: Any) -> bytes:
    row = {name: value for name, value in {**payment("t1", "a", "b"), **changes}.items() if value is not ...}
    return json.dumps({"transactions": [row]}).encode()


BAD_INPUT: dict[str, tuple[bytes, int, str]] = {
    "malformed JSON": (b'{"transactions": [', 400, "body"),
    "wrong type": (body(sender_id=5), 400, "transactions[0].sender_id"),
    "missing field": (body(amount=...), 400, "transactions[0].amount"),
    "unknown field": (body(colour="red"), 400, "transactions[0].colour"),
    "NaN": (body(amount=0).replace(b'"amount": 0', b'"amount": NaN'), 400, "transactions[0].amount"),
    "infinite": (body(amount=0).replace(b'"amount": 0', b'"amount": Infinity'), 400, "transactions[0].amount"),
    "negative": (body(amount=-0.01), 400, "transactions[0].amount"),
    "naive time": (body(event_timestamp="2026-03-01T12:00:00"), 400, "transactions[0].event_timestamp"),
    "year 9999": (body(event_timestamp="9999-12-31T00:00:00Z"), 400, "transactions[0].event_timestamp"),
    "empty list": (b'{"transactions": []}', 400, "transactions"),
    "one too many": (
        json.dumps({"transactions": [payment(f"t{at}", "a", "b") for at in range(501)]}).encode(),
        413,
        "transactions",
    ),
    "id of 10,000 characters": (body(transaction_id="x" * 10_000), 400, "transactions[0].transaction_id"),
    "non-UTF-8": (body().replace(b'"a"', b'"\xff"'), 400, "body"),
    "duplicate ids": (
        json.dumps({"transactions": [payment("t1", "a", "b")] * 2}).encode(),
        400,
        "transactions[1].transaction_id",
    ),
    "too large a body": (b" " * (4 * 1024 * 1024 + 1), 413, "body"),
}


@pytest.mark.parametrize("name", list(BAD_INPUT))
@pytest.mark.parametrize("path", ["/predict", "/transactions"])
def test_09_bad_input_has_its_documented_answer(server: Any, name: str, path: str) -> None:
    """Every kind of bad input gets its status and a problem that names the field, what was expected and what came."""
    content, status, name_of_field = BAD_INPUT[name]
    reply = server.http.post(path, content=content)
    problem = reply.json()
    assert (reply.status_code, problem["field"]) == (status, name_of_field), problem
    assert reply.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "expected", "got", "request_id"} <= set(problem)


def test_10_unknown_feature_names_are_400(server: Any) -> None:
    """Feature names that do not exist are refused by both feature routes."""
    for reply in (
        server.http.get("/features?ids=c1&features=account_activity:nothing"),
        server.http.post("/get-online-features", json={"features": ["x:y"], "entities": {"account_id": ["c1"]}}),
    ):
        assert (reply.status_code, reply.json()["field"]) == (400, "features")


def test_11_killed_workers_cost_no_request(server: Any) -> None:
    """Workers killed with SIGKILL again and again during load: every request succeeds, and capacity comes back."""
    rows = [payment(f"k{at}", f"c{at % 5}", f"m{at % 3}") for at in range(100)]
    expected = [score["fraud_score"] for score in scores(server, *rows)]
    before = server.pool("inference_workers")
    wrong: list[object] = []
    sent = 0
    stop = threading.Event()

    def load() -> None:
        nonlocal sent
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=120) as http:
            while not stop.is_set():
                reply = http.post("/predict", json={"transactions": rows})
                sent += 1
                if reply.status_code != 200:
                    wrong.append(reply.text)
                elif [score["fraud_score"] for score in reply.json()["scores"]] != expected:
                    wrong.append("other scores")

    killed = 0

    def replaced() -> bool:
        """Every death so far has been seen and made good: a pool counts a worker as alive until it finds it dead."""
        pool = server.pool("inference_workers")
        return bool(pool.get("alive") == 2 and pool["restarts"] >= before["restarts"] + killed)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            # A shard is tried twice: the next worker is killed only when the last one has been replaced for a while.
            os.kill(server.pool("inference_workers")["pids"][0], signal.SIGKILL)
            killed += 1
            server.until(replaced, 60)
            time.sleep(0.5)
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=120)
    assert wrong == []
    assert killed == 5
    assert sent > 5
    assert scores(server, rows[0])[0]["fraud_score"] == pytest.approx(expected[0], abs=1e-6)


def test_12_killed_feature_worker_comes_back(server: Any) -> None:
    """A feature worker killed while it works costs one retry: the write is accepted and its features are renewed."""
    (pid,) = server.pool("feature_workers")["pids"]
    rows = [payment(f"w{at}", f"w{at}", "m1", "2026-03-01T10:00:00Z") for at in range(100)]
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    reply = server.http.post("/transactions", json={"transactions": rows})
    killer.join()
    assert (reply.status_code, reply.json()["inserted"]) == (200, 100), reply.text
    server.until(lambda: server.pool("feature_workers").get("alive") == 1, 120)
    found = scores(server, payment("w", "w7", "m1"))[0]
    assert found["features_as_of"]["sender"] == "2026-03-01T10:00:00.001Z"
    assert found["unseen"] == []


GATES = """
window_days: 60
least_frauds: 1
largest_average_precision_drop: 1
largest_card_precision_drop: 1
largest_calibration_error: 1
largest_calibration_error_growth: 1
largest_latency_ratio: 1000
largest_latency_ms_per_1000: 1000000
largest_score_shift: 1
"""


def test_13_promotion_and_rollback_under_load(server: Any) -> None:
    """A challenger is refused, promoted and rolled back while the server scores: no request fails or mixes versions."""
    known = "2026-02-20T00:00:00Z"
    labels = [{"transaction_id": f"h{at}", "is_fraud": at % 4 == 0, "label_timestamp": known} for at in range(12)]
    assert server.http.post("/labels", json={"labels": labels}).json()["inserted"] == 12
    assert server.command("apply").returncode == 0
    for name, text in (("open", GATES), ("shut", GATES.replace("largest_score_shift: 1", "largest_score_shift: 0"))):
        (server.home / f"{name}.yaml").write_text(text)
    row = payment("v", "c1", "m1")
    old_version = server.http.get("/health").json()["checks"]["model"]["detail"]["version"]
    versions: dict[str, set[float]] = {}
    order: list[str] = []
    failed: list[str] = []
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=120) as http:
            while not stop.is_set():
                reply = http.post("/predict", json={"transactions": [row]})
                if reply.status_code != 200:
                    failed.append(reply.text)
                    continue
                version = reply.json()["model"]["version"]
                versions.setdefault(version, set()).add(reply.json()["scores"][0]["fraud_score"])
                if order[-1:] != [version]:
                    order.append(version)
                time.sleep(0.02)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        new = server.promote(seed=2, alias="")
        refused = server.command("promote", "--gates", str(server.home / "shut.yaml"), "--by", "ann")
        assert refused.returncode == 1
        assert f"version {new} was refused: scores move by" in " ".join(refused.stderr.split())
        done = server.command("promote", "--gates", str(server.home / "open.yaml"), "--by", "bob")
        assert done.returncode == 0, done.stderr[-4_000:]
        server.until(lambda: new in versions, 120)
        back = server.command("promote", "--rollback", "--by", "eve")
        assert back.returncode == 0, back.stderr[-4_000:]
        server.until(lambda: order[-1] == old_version, 120)
    finally:
        stop.set()
        thread.join(timeout=120)
    assert failed == []
    assert order == [old_version, new, old_version]
    assert all(len(values) == 1 for values in versions.values())
    assert versions[new] != versions[old_version]
    trail = json.loads(server.command("promotions", "--json").stdout)
    assert [(entry["decision"], entry["version"], entry["decided_by"]) for entry in trail] == [
        ("rolled back", old_version, "eve"),
        ("promoted", new, "bob"),
        ("refused", new, "ann"),
    ]


def test_14_logs_hold_no_personal_values(server: Any) -> None:
    """The server's own lines are JSON and name no account and no payment."""
    lines = [line for line in server.log().splitlines() if line.startswith("{")]
    assert len(lines) > 50
    for line in lines:
        entry = json.loads(line)
        assert {"time", "level", "logger", "message"} <= set(entry)
        if entry["logger"].startswith("ringfence.serving"):
            assert "c1" not in entry.values()
            assert "nobody" not in line


def test_15_killed_server_leaves_no_process_and_no_damage(server: Any) -> None:
    """SIGKILL of the server in the middle of requests: its workers end by themselves, and the next start serves."""
    rows = [payment(f"x{at}", f"c{at % 5}", f"m{at % 3}") for at in range(200)]
    expected = [score["fraud_score"] for score in scores(server, *rows)]
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert len(children) >= 3

    def send() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=120) as http:
            try:
                for _ in range(100):
                    http.post("/predict", json={"transactions": rows})
            except httpx.TransportError:
                return

    thread = threading.Thread(target=send)
    thread.start()
    time.sleep(0.5)
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    thread.join(timeout=120)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    server.start()
    server.until(lambda: server.answers("/health/ready"), 120)
    assert [score["fraud_score"] for score in scores(server, *rows)] == expected
    assert server.http.get("/decisions/x0").json()["decisions"]


def test_16_sigterm_drains(server: Any) -> None:
    """SIGTERM lets requests under way end, exits with 0 and leaves no process."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    replies: list[dict[str, Any]] = []

    def send(number: int) -> None:
        rows = [payment(f"d{number}-{at}", f"d{number}-{at}", "m1", "2026-03-01T10:30:00Z") for at in range(100)]
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=120) as http:
            replies.append(http.post("/transactions", json={"transactions": rows}).json())

    threads = [threading.Thread(target=send, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    server.until(
        lambda: "ringfence_requests_in_flight 3.0" in server.http.get("/metrics").text or len(replies) == 3, 30
    )
    assert len(replies) < 3
    status = server.stop(signal.SIGTERM, limit_s=120)
    for thread in threads:
        thread.join(timeout=60)
    assert [(reply["inserted"], reply["refreshed"]) for reply in replies] == [(100, "done")] * 3
    assert status == 0
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
