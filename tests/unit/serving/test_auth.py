"""Who may call what: keys, tokens, scopes, and what nobody must learn from an answer or a log."""

from __future__ import annotations

import hmac
import json
import logging
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi.routing import APIRoute

from graph_features.errors import InvalidInputError, SettingsError
from graph_features.settings import AuthMode, AuthSettings, PlatformSettings, Profile, ServingSettings
from serving import auth, keys
from serving.app import ROUTERS
from serving.auth import KeyGuard, is_on
from serving.keys import KeyTable, Scope, UnknownKeyError

ADMIN = "an administrator's key of 40 characters!"
ISSUER, AUDIENCE = "https://issuer.example", "ringfence"
OPEN = {"/health", "/health/live", "/health/ready"}
SIGNER = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


@pytest.fixture
def table(tmp_path: Path) -> Any:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'keys.sqlite'}")
    yield KeyTable(engine)
    engine.dispose()


def make(table: KeyTable, *scopes: Scope, expires_at_ms: int | None = None) -> str:
    return table.create("shop", scopes, now_ms=1_000, expires_at_ms=expires_at_ms)[1]


def guard_of(table: KeyTable, *, clock_ms: Any = None, **settings: Any) -> KeyGuard:
    guard = KeyGuard(table, AuthSettings(**{"admin_key": ADMIN, **settings}), clock_ms=clock_ms)
    guard.start()
    return guard


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_each_scope_opens_its_routes_and_no_others(run_app: Any, table: KeyTable, payment: Any) -> None:
    """predict scores, read reads, write writes, admin does all; a key without the scope is 403 and is told which."""
    held_keys = {scope: make(table, scope) for scope in Scope}
    client, _ = run_app(guard=guard_of(table))
    asked = {
        Scope.PREDICT: ("post", "/predict", {"transactions": [payment]}),
        Scope.READ: ("get", "/features?ids=a", None),
        Scope.WRITE: ("post", "/transactions", {"transactions": [payment]}),
        Scope.ADMIN: ("post", "/jobs", {"kind": "materialize"}),
    }
    for held, key in held_keys.items():
        for needed, (method, url, body) in asked.items():
            options = {"headers": bearer(key), **({"json": body} if body else {})}
            reply = getattr(client, method)(url, **options)
            if held in (needed, Scope.ADMIN):
                assert reply.is_success, (held, needed, reply.text)
            else:
                assert (reply.status_code, reply.json()["type"]) == (403, "urn:ringfence:problem:forbidden")
                assert f'scope="{needed}"' in reply.headers["www-authenticate"]


def test_no_key_is_401_before_the_body_is_read(run_app: Any, table: KeyTable) -> None:
    """Without a key every route but health is 401 as a problem, whatever its body; health shows no details."""
    client, _ = run_app(guard=guard_of(table), max_body_bytes=1_024)
    for url in ("/predict", "/transactions", "/get-online-features", "/jobs"):
        reply = client.post(url, content=b"x" * 5_000)
        assert (reply.status_code, reply.headers["content-type"]) == (401, "application/problem+json"), url
        assert reply.headers["www-authenticate"] == 'Bearer realm="ringfence"'
    for url in ("/features", "/decisions/t1", "/jobs", "/metrics"):
        assert client.get(url).status_code == 401, url
    health = client.get("/health").json()
    assert health["auth"] == {"required": True, "keys": True, "tokens": False}
    assert all(check["detail"] == {} for check in health["checks"].values())
    detailed = client.get("/health", headers={"X-API-Key": ADMIN}).json()
    assert detailed["checks"]["model"]["detail"]["version"] == "1"


def test_every_route_names_a_scope_or_is_known_to_be_open(run_app: Any) -> None:
    """A new route cannot be open by oversight, and the document says of each what it needs."""
    client, _ = run_app()
    document = client.get("/openapi.json").json()
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    assert len(routes) > 15
    for route in routes:
        scope = auth.scope_of(route)
        assert (scope is None) == (route.path in OPEN or route.path.startswith("/v2/health") or route.path == "/v2")
        for method in route.methods:
            operation = document["paths"][route.path_format][method.lower()]
            assert ("security" in operation) == (scope is not None)
            assert {"401", "403"} <= set(operation["responses"]) or scope is None


def test_keys_are_kept_as_digests(table: KeyTable, tmp_path: Path) -> None:
    """The file holds no secret, and a key is shown once."""
    secret = make(table, Scope.READ).split("_", 2)[2]
    assert secret.encode() not in (tmp_path / "keys.sqlite").read_bytes()
    (key,) = table.all()
    assert key.digest == keys.digest_of(secret)
    assert secret not in repr(key)


def test_revoked_and_expired_keys_are_refused(run_app: Any, table: KeyTable) -> None:
    """A revoked key is refused once the servers have read the table again, an expired one at its time."""
    now_ms = [5_000]
    short, long = make(table, Scope.READ, expires_at_ms=10_000), make(table, Scope.READ)
    client, _ = run_app(guard=guard_of(table, clock_ms=lambda: now_ms[0], refresh_s=0.05))
    assert [client.get("/features?ids=a", headers=bearer(key)).status_code for key in (short, long)] == [200, 200]
    now_ms[0] = 10_000
    assert client.get("/features?ids=a", headers=bearer(short)).status_code == 401
    table.revoke(long.split("_")[1], now_ms=1)
    deadline = time.monotonic() + 10
    while client.get("/features?ids=a", headers=bearer(long)).status_code == 200:
        assert time.monotonic() < deadline
    with pytest.raises(UnknownKeyError):
        table.revoke("0" * 12, now_ms=1)


def test_new_keys_work_at_once(run_app: Any, table: KeyTable) -> None:
    """A key made after the start is looked up when it is first seen, not at the next refresh."""
    client, _ = run_app(guard=guard_of(table, refresh_s=3_600))
    key = make(table, Scope.READ)
    assert client.get("/features?ids=a", headers=bearer(key)).status_code == 200


def test_a_lost_database_locks_nobody_out(run_app: Any, table: KeyTable) -> None:
    """When the database is away, known keys go on working."""
    key = make(table, Scope.READ)
    client, _ = run_app(guard=guard_of(table, refresh_s=0.05))
    assert client.get("/features?ids=a", headers=bearer(key)).status_code == 200
    table._engine.dispose()
    Path(str(table._engine.url.database)).write_bytes(b"no database at all" * 100)
    time.sleep(0.2)
    assert client.get("/features?ids=a", headers=bearer(key)).status_code == 200


@pytest.mark.parametrize("known", [True, False])
def test_secrets_are_compared_in_constant_time(
    run_app: Any, table: KeyTable, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """A wrong secret is compared as digests by hmac.compare_digest, as often for an unknown id as for a known one."""
    key = make(table, Scope.READ)
    client, _ = run_app(guard=guard_of(table))
    wrong = key[:-4] + ("AAAA" if key[-4:] != "AAAA" else "BBBB")
    if not known:
        wrong = wrong.replace(key.split("_")[1], "0" * 12)
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    reply = client.get("/features?ids=a", headers=bearer(wrong))
    assert (reply.status_code, reply.json()["detail"]) == (401, "The key is not valid.")
    assert [len(a) == len(b) == 32 for a, b in compared] == [True, True]  # the administrator's and this one


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer   "},
        {"Authorization": "Basic dTpw"},
        {"Authorization": "Bearer rfk_0123456789ab_short"},
        {"Authorization": "Bearer \u00e9\u00ff".encode("latin-1")},
        {"X-API-Key": "a.b.c"},
        {"X-API-Key": ""},
    ],
)
def test_nonsense_is_401(run_app: Any, table: KeyTable, headers: dict[str, Any], tmp_path: Path) -> None:
    """Whatever stands in the headers, it is refused as such."""
    client, _ = run_app(guard=guard_of(table, **issuer(tmp_path)))
    assert client.get("/features?ids=a", headers=headers).status_code == 401


def test_neither_keys_nor_people_are_logged(
    run_app: Any, table: KeyTable, payment: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Whether a request succeeds or fails, no log line has a key, an account, a card or a payment in it."""
    caplog.set_level(logging.DEBUG)
    key = make(table, Scope.ADMIN)
    client, application = run_app(guard=guard_of(table, **issuer(tmp_path)))
    private = {"sender_id": "private-sender", "receiver_id": "private-receiver", "card_id": "private-card"}
    row = {**payment, **private, "transaction_id": "private-payment", "ip": "private-ip"}
    bodies = [[row], [{**row, "amount": -1}], [{**row, "event_timestamp": "private-time"}], [row, row]]
    for headers in (bearer(key), bearer(key[:-1] + "~"), bearer(ADMIN), bearer(token(sub="private-person"))):
        for body in bodies:
            for url in ("/predict", "/transactions"):
                client.post(url, json={"transactions": body}, headers=headers)
        client.get("/decisions/private-payment", headers=headers)
        client.get("/features?ids=private-sender", headers=headers)
    application.online.down = True
    client.post("/predict", json={"transactions": [row]}, headers=bearer(key))
    own = [record for record in caplog.records if record.name.startswith(("ringfence", "serving", "graph_features"))]
    written = "\n".join(json.dumps({**vars(record)}, default=str) for record in own)
    assert "store-unavailable" in written or "request failed" in written
    for secret in (key, key.split("_", 2)[2], ADMIN, "private-"):
        assert secret not in written


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    algorithm = jwt.algorithms.ECAlgorithm if hasattr(key, "curve") else jwt.algorithms.RSAAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "use": "sig", **more}


def issuer(folder: Path, *entries: dict[str, Any]) -> dict[str, str]:
    path = folder / "jwks.json"
    path.write_text(json.dumps({"keys": list(entries) or [jwk(SIGNER, kid="1")]}))
    return {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE, "oidc_jwks": str(path), "oidc_scope_prefix": "ringfence:"}


def token(*, key: Any = SIGNER, kid: str = "1", algorithm: str = "RS256", **claims: Any) -> str:
    now = int(time.time())
    standard = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 60, "sub": "somebody", "scope": "ringfence:read openid"}
    kept = {name: value for name, value in {**standard, **claims}.items() if value is not None}
    return jwt.encode(kept, key, algorithm=algorithm, headers={"kid": kid})


def test_tokens_of_the_issuer_are_taken(run_app: Any, table: KeyTable, tmp_path: Path) -> None:
    """A valid token has the scopes of its claim, as text or as list, and no others."""
    client, _ = run_app(guard=guard_of(table, admin_key="", **issuer(tmp_path)))
    assert client.get("/features?ids=a", headers=bearer(token())).status_code == 200
    assert client.get("/features?ids=a", headers=bearer(token(scope=["ringfence:admin"]))).status_code == 200
    for scope in ("read", "ringfence:predict", None, 7, ["openid"]):
        assert client.get("/features?ids=a", headers=bearer(token(scope=scope))).status_code == 403, scope


OTHER = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
REFUSED = {
    "expired": {"exp": 1_000},
    "without exp": {"exp": None},
    "not yet valid": {"nbf": 4_000_000_000},
    "another issuer": {"iss": "https://other.example"},
    "another audience": {"aud": "other"},
    "without audience": {"aud": None},
    "forged": {"key": OTHER},
    "unknown key": {"key": OTHER, "kid": "2"},
    "shared secret": {"key": "x" * 40, "algorithm": "HS256"},
    "no signature": {"key": None, "algorithm": "none"},
    "an algorithm that is not the key's": {"algorithm": "PS512"},
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_other_tokens_are_refused(run_app: Any, table: KeyTable, tmp_path: Path, name: str) -> None:
    """Signature, algorithm, issuer, audience and times each decide alone."""
    client, _ = run_app(guard=guard_of(table, **issuer(tmp_path)))
    reply = client.get("/features?ids=a", headers=bearer(token(**REFUSED[name])))
    assert reply.status_code == 401, reply.text
    assert 'error="invalid_token"' in reply.headers["www-authenticate"]


def test_a_new_signing_key_is_found(run_app: Any, table: KeyTable, tmp_path: Path) -> None:
    """When the issuer signs with a new key, its key set is read again; keys of other kinds are passed over."""
    guard = guard_of(table, **issuer(tmp_path))
    client, _ = run_app(guard=guard)
    fresh = ec.generate_private_key(ec.SECP256R1())
    issuer(tmp_path, {"kty": "oct", "k": "eHg", "kid": "3"}, {"kty": "new"}, jwk(fresh, kid="2"))
    assert guard._tokens is not None
    guard._tokens._fetched_s = float("-inf")
    reply = client.get("/features?ids=a", headers=bearer(token(key=fresh, kid="2", algorithm="ES256")))
    assert reply.status_code == 200
    assert client.get("/features?ids=a", headers=bearer(token())).status_code == 401


EMBEDDED, SERVICES = PlatformSettings(), PlatformSettings(profile=Profile.SERVICES)


@pytest.mark.parametrize(
    ("platform", "host", "mode", "expected"),
    [
        (EMBEDDED, "127.0.0.1", AuthMode.AUTO, False),
        (EMBEDDED, "::1", AuthMode.OFF, False),
        (EMBEDDED, "localhost", AuthMode.ON, True),
        (EMBEDDED, "0.0.0.0", AuthMode.AUTO, True),
        (EMBEDDED, "example.org", AuthMode.AUTO, True),
        (SERVICES, "127.0.0.1", AuthMode.AUTO, True),
        (EMBEDDED, "0.0.0.0", AuthMode.OFF, None),
        (SERVICES, "127.0.0.1", AuthMode.OFF, None),
    ],
)
def test_keys_are_left_out_on_loopback_alone(
    platform: PlatformSettings, host: str, mode: AuthMode, expected: bool | None
) -> None:
    """Without keys is for the embedded profile on loopback; elsewhere asking for that is refused."""
    if expected is None:
        with pytest.raises(SettingsError, match="RINGFENCE_AUTH_MODE"):
            is_on(platform, ServingSettings(host=host), AuthSettings(mode=mode))
    else:
        assert is_on(platform, ServingSettings(host=host), AuthSettings(mode=mode)) is expected


def test_a_server_that_nobody_could_call_does_not_start(table: KeyTable, tmp_path: Path) -> None:
    """Keys are wanted and there is none: the message says how to make one. Half an issuer is refused too."""
    with pytest.raises(SettingsError, match="ringfence keys create"):
        guard_of(table, admin_key="")
    table.revoke(make(table, Scope.ADMIN).split("_")[1], now_ms=1)
    with pytest.raises(SettingsError, match="ringfence keys create"):
        guard_of(table, admin_key="")
    with pytest.raises(SettingsError, match="OIDC_AUDIENCE"):
        guard_of(table, oidc_issuer=ISSUER)
    with pytest.raises(SettingsError, match="https"):
        guard_of(table, **{**issuer(tmp_path), "oidc_jwks": "http://issuer.example/jwks"})
    with pytest.raises(ValueError, match="32 characters"):
        AuthSettings(admin_key="short")
    assert ADMIN not in repr(AuthSettings(admin_key=ADMIN))


def test_keys_need_a_name_and_a_scope(table: KeyTable) -> None:
    """Names are short and plain; a key without rights, or that has expired already, is a mistake."""
    for name in ("", "a b", "x" * 65, "-"):
        with pytest.raises(InvalidInputError, match="name"):
            table.create(name, [Scope.READ], now_ms=1)
    with pytest.raises(InvalidInputError, match="scope"):
        table.create("a", [], now_ms=1)
    with pytest.raises(InvalidInputError, match="expires"):
        table.create("a", [Scope.READ], now_ms=1, expires_at_ms=1)
    assert table.all() == []


def test_answers_carry_security_headers(shared_client: Any) -> None:
    """No answer is kept, framed, embedded or taken for another kind; only the page of documentation runs anything."""
    for url in ("/health/live", "/features", "/nothing"):
        headers = shared_client.get(url).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "script-src" in shared_client.get("/docs").headers["content-security-policy"]
