"""Clients that know nothing of Ringfence, unmodified, against the real server with keys wanted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

ADMIN = "acceptance-administrator-key-of-many-characters"


@pytest.fixture(scope="module")
def server(start_server: Any) -> Any:
    running = start_server(
        RINGFENCE_WORKERS="1",
        RINGFENCE_AUTH_MODE="on",
        RINGFENCE_AUTH_ADMIN_KEY=ADMIN,
    )
    rows = [
        {
            "transaction_id": f"t{at}",
            "event_timestamp": f"2026-02-{1 + at:02d}T08:00:00.250Z",
            "sender_id": f"F{at % 2 + 1}",
            "receiver_id": "shop",
            "amount": "12.50",
            "currency": "EUR",
        }
        for at in range(6)
    ]
    reply = running.http.post("/transactions", json={"transactions": rows})
    assert reply.json()["refreshed"] == "done", reply.text
    return running


@pytest.fixture(scope="module")
def feast_store(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Feast with its own remote online store, pointed at the server; everything else is Feast's default."""
    from feast import FeatureStore, RepoConfig

    from feature_repo.objects import build
    from graph_features.catalog import catalog

    folder = tmp_path_factory.mktemp("feast")
    store = FeatureStore(
        config=RepoConfig(
            project="ringfence",
            provider="local",
            registry=str(folder / "registry.db"),
            offline_store={"type": "duckdb"},
            online_store={"type": "remote", "path": server.url},
            auth={"type": "oidc", "token": ADMIN},
            entity_key_serialization_version=3,
        )
    )
    store.apply(list(build(catalog().schemas).values()))
    return store


def test_feast_reads_through_its_remote_online_store(server: Any, feast_store: Any) -> None:
    """Values, nulls and times as GET /features has them; features of the payment too; an absent account is null."""
    refs = [
        "account_activity:sent_count_all",
        "account_activity:sent_amount_sum_all",
        "account_activity:last_transaction_timestamp",
    ]
    own = server.http.get("/features", params={"ids": "F1,F2,nobody", "features": ",".join(refs)}).json()["rows"]
    found = feast_store.get_online_features(refs, [{"account_id": id_} for id_ in ("F1", "F2", "nobody")]).to_dict()
    for ref in refs[:2]:
        assert found[ref.split(":")[1]] == [row["values"][ref] for row in own]
    assert found["account_id"] == ["F1", "F2", "nobody"]
    last = datetime.fromisoformat(own[0]["values"][refs[2]])
    assert found["last_transaction_timestamp"][0] == int(last.timestamp())
    assert found["last_transaction_timestamp"][2] is None


def test_feast_reads_every_view(server: Any, feast_store: Any) -> None:
    """Accounts, pairs and the payment itself, by the names of their features, in one request.

    But for lists: Feast's client cannot make anything of an empty one, whichever server sends it.
    """
    from graph_features.catalog import catalog
    from graph_features.transaction import REQUEST_FEATURES

    schemas = catalog().schemas.values()
    names = {view: [f"{view.name}:{one.name}" for one in view.features if not one.dtype.is_list] for view in schemas}
    accounts = [name for view, listed in names.items() if view.entity == "account" for name in listed]
    found = feast_store.get_online_features(accounts, [{"account_id": "shop"}], full_feature_names=True).to_dict()
    assert found["account_activity__received_count_all"] == [6]
    assert len(found) == 1 + len(accounts)
    pairs = [name for view, listed in names.items() if view.entity == "pair" for name in listed]
    payment = {"payment_timestamp": 1_772_366_400, "amount_base": 1250, "channel": "online"}
    places = {f"{side}_{axis}": None for side in ("sender", "receiver") for axis in ("lat", "lon")}
    own = [f"transaction_features:{feature.name}" for feature in REQUEST_FEATURES]
    row = {"sender_id": "F1", "receiver_id": "shop", **payment, **places}
    found = feast_store.get_online_features([*pairs, *own], [row], full_feature_names=True).to_dict()
    assert len(found) == 2 + len(pairs) + len(own)
    assert found[own[0].replace(":", "__")] is not None


def test_feast_reads_and_writes_one_view(server: Any, feast_store: Any) -> None:
    """write_to_online_store through the remote store reaches ours, and online_read finds it again."""
    view = feast_store.get_feature_view("account_activity")
    schema = {field.name: field for field in view.features}
    columns = {name: [[]] if "Array" in str(field.dtype) else [7] for name, field in schema.items()}
    moment = datetime(2026, 2, 20, 8, 0, tzinfo=UTC)
    frame = pd.DataFrame(
        {"account_id": ["written"], "event_timestamp": [moment], "created_timestamp": [moment], **columns}
    )
    for name, field in schema.items():
        if "Timestamp" in str(field.dtype):
            frame[name] = pd.to_datetime([moment])
    feast_store.write_to_online_store("account_activity", frame)
    found = feast_store.get_online_features(["account_activity:sent_count_all"], [{"account_id": "written"}]).to_dict()
    assert found["sent_count_all"] == [7]
    row = server.http.get("/features?ids=written&features=account_activity:sent_count_all").json()["rows"][0]
    assert row["event_timestamps"] == {"account_activity": "2026-02-20T08:00:00Z"}


def test_feast_without_the_right_key_is_told_so(server: Any, feast_store: Any, tmp_path: Path) -> None:
    """A client with a wrong key gets Feast's own error with our reason in it."""
    from feast.permissions.client.http_auth_requests_wrapper import HttpSessionManager

    auth = feast_store.config.auth_config
    right, auth.token = auth.token, "rfk_000000000000_" + "x" * 43
    HttpSessionManager.close_session()
    try:
        with pytest.raises(RuntimeError, match="401"):
            feast_store.get_online_features(["account_activity:sent_count_all"], [{"account_id": "F1"}])
    finally:
        auth.token = right
        HttpSessionManager.close_session()


def test_push_as_feasts_server_takes_it(server: Any) -> None:
    """POST /push writes to both stores, answers as Feast does, and names what is wrong with a frame."""
    example = server.http.get("/openapi.json").json()["paths"]["/push"]["post"]["requestBody"]["content"]
    body = example["application/json"]["example"]
    body = {**body, "df": {**body["df"], "account_id": ["pushed"]}, "to": "online_and_offline"}
    reply = server.http.post("/push", json=body)
    assert (reply.status_code, reply.content) == (200, b""), reply.text
    assert server.http.get("/features?ids=pushed").json()["rows"][0]["event_timestamps"]["account_activity"]
    wrong = server.http.post("/push", json={**body, "df": {**body["df"], "event_timestamp": ["yesterday"]}})
    assert (wrong.status_code, wrong.json()["field"]) == (400, "df.event_timestamp[0]")


def test_every_example_runs_as_it_stands(server: Any) -> None:
    """Each request that the OpenAPI document shows is answered 2xx, in the order of a newcomer's day."""
    server.promote(seed=1)
    server.until(lambda: server.answers("/health/ready"), 120)
    document = server.http.get("/openapi.json").json()
    posts = {
        path: operation["requestBody"]["content"]["application/json"]["example"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method == "post" and "requestBody" in operation
    }
    known = {"{name}": "ringfence", "{version}": server.http.get("/v2/models/ringfence").json()["versions"][0]}
    job = ""
    order = sorted(posts, key=lambda path: (path != "/transactions", path))
    for path in order:
        reply = server.http.post(_filled(path, known), json=posts[path])
        assert reply.is_success, (path, reply.text)
        job = reply.json()["job"]["id"] if path == "/jobs" else job
    known |= {"{job_id}": job, "{transaction_id}": posts["/predict"]["transactions"][0]["transaction_id"]}
    for path, methods in document["paths"].items():
        if "get" in methods:
            shown = [item for item in methods["get"].get("parameters", ()) if item["in"] == "query"]
            given = {
                item["name"]: next(iter(item["examples"].values()))["value"] for item in shown if "examples" in item
            }
            reply = server.http.get(_filled(path, known), params=given)
            assert reply.is_success, (path, reply.text)


def _filled(path: str, known: dict[str, str]) -> str:
    for name, value in known.items():
        path = path.replace(name, value)
    return path


def test_keys_made_by_the_command_work_at_once(server: Any) -> None:
    """`ringfence keys create` makes a key that the running server takes, and `revoke` ends it."""
    import subprocess
    import sys

    def keys(*arguments: str) -> str:
        command = [sys.executable, "-m", "infra.cli", "keys", *arguments]
        done = subprocess.run(command, env=server.environment, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout

    key = keys("create", "shop", "--scope", "read", "--expires-days", "30").strip()
    with httpx.Client(base_url=server.url, headers={"X-API-Key": key}) as shop:
        assert shop.get("/features?ids=F1").status_code == 200
        assert shop.post("/jobs", json={"kind": "materialize"}).status_code == 403
        listed = keys("list")
        assert "shop" in listed
        assert key.split("_", 2)[2] not in listed
        keys("revoke", key.split("_")[1])
        server.until(lambda: shop.get("/features?ids=F1").status_code == 401, 30)
    assert key not in server.log()
    assert ADMIN not in server.log()
