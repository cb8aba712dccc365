"""Requests scored together through the API: each gets what it would get alone, and waits for no other's features."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any


def stored(world: Any, tiny: SimpleNamespace, *accounts: str) -> None:
    for at, account in enumerate(accounts):
        world.online.put(tiny.ACTIVITY, (account,), tiny.T0 - 1_000, sent=3 + at, mean=1.5 * at)
        world.online.put(tiny.EXPOSURE, (account,), tiny.T0 - 1_000, frauds=at)
        world.online.put(tiny.RANKS, (account,), tiny.T0 - 1_000, rank=0.1 * at)


def at_once(client: Any, bodies: list[dict[str, Any]]) -> list[Any]:
    """Replies to requests that come in the same moment."""

    async def send() -> list[Any]:
        return await asyncio.gather(*(client._http.post("/predict", json=body) for body in bodies))

    replies: list[Any] = client.run(send())
    return replies


def body_of(payment: dict[str, Any], name: str, *senders: str) -> dict[str, Any]:
    rows = [{**payment, "transaction_id": f"{name}-{at}", "sender_id": one} for at, one in enumerate(senders)]
    return {"transactions": rows}


def test_together_is_as_alone(run_app: Any, world: Any, tiny: SimpleNamespace, payment: Any) -> None:
    """Scores, their order and the request of each decision must be those of requests sent one by one."""
    accounts = [f"s{at}" for at in range(6)]
    stored(world, tiny, "b", *accounts)
    client, application = run_app(shard_rows=16)
    bodies = [body_of(payment, "x", "s0"), body_of(payment, "y", "s1", "s2"), body_of(payment, "z", "s3", "s4", "s5")]
    read_before = world.online.reads
    replies = [reply.json() for reply in at_once(client, bodies)]
    assert world.online.reads == read_before + 1
    alone = [client.post("/predict", json=body).json() for body in bodies]
    assert [reply["scores"] for reply in replies] == [reply["scores"] for reply in alone]
    assert [[one["transaction_id"] for one in reply["scores"]] for reply in replies] == [
        ["x-0"],
        ["y-0", "y-1"],
        ["z-0", "z-1", "z-2"],
    ]
    for reply in replies:
        for score in reply["scores"]:
            found = application.services.decisions.find(score["transaction_id"])
            (mine,) = [record for record in found if record["request_id"] == reply["request_id"]]
            assert mine["fraud_score"] == score["fraud_score"]


def test_nobody_waits_for_another_s_cold_account(run_app: Any, world: Any, tiny: SimpleNamespace, payment: Any) -> None:
    """A request whose account must be computed first is late by itself; those beside it are answered meanwhile."""
    stored(world, tiny, "a", "b")
    world.known = {"cold"}
    world.truth = {
        ("cold",): [
            (tiny.ACTIVITY, tiny.T0 - 500, {"sent": 9, "mean": 2.0}),
            (tiny.EXPOSURE, tiny.T0 - 500, {"frauds": 1}),
            (tiny.RANKS, tiny.T0 - 500, {"rank": 0.9}),
        ]
    }
    world.before_answer = lambda method: time.sleep(0.5 if method == "refresh" else 0)
    client, _ = run_app(shard_rows=16)
    warm, cold = (
        reply.json() for reply in at_once(client, [body_of(payment, "w", "a"), body_of(payment, "c", "cold")])
    )
    assert cold["routes"]["feature_engineering"] > 0
    assert cold["scores"][0]["degraded"] == []
    assert cold["timing_ms"]["total"] > 400
    assert warm["routes"]["feature_engineering"] == 0
    assert warm["timing_ms"]["total"] < 400


def test_a_bad_request_spoils_no_other(run_app: Any, world: Any, tiny: SimpleNamespace, payment: Any) -> None:
    """Of requests of one moment the one with a bad value is refused by its own index; the others are scored."""
    stored(world, tiny, "a", "b")
    client, _ = run_app(shard_rows=16)
    bad = body_of(payment, "bad", "a", "a")
    bad["transactions"][1]["currency"] = "CHF"
    good, refused = at_once(client, [body_of(payment, "good", "a"), bad])
    assert good.status_code == 200
    assert refused.status_code == 400
    assert refused.json()["field"] == "transactions[1].currency"
