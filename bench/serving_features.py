"""`POST /get-online-features` beside `feast serve`: the same sixty features, values and accounts on one Redis."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from bench.http_load import Load, closed_loop, once, post
from bench.report import Figure
from bench.serving_peers import Chosen, choose, feast_fill, feast_repo, feast_server
from bench.serving_world import World, serving
from bench.timing import note
from graph_features.catalog import catalog

ACCOUNTS = 2_000
GOALS = {1: 4.0, 100: 15.0}
CONNECTIONS = {1: 16, 100: 4}
"""Enough to keep either server busy all the time."""

PATH = "/get-online-features"


def request(refs: list[str], ids: list[str]) -> bytes:
    """As both servers take it."""
    body = {"features": refs, "entities": {"account_id": ids}, "full_feature_names": True}
    return post(PATH, json.dumps(body).encode())


def columns(body: bytes) -> dict[str, list[Any]]:
    """Values by full feature name."""
    reply = json.loads(body)
    names = reply["metadata"]["feature_names"]
    return {name: one["values"] for name, one in zip(names, reply["results"], strict=True)}


def same(ours: bytes, theirs: bytes, chosen: Chosen) -> None:
    """Raise AssertionError unless both servers say the same."""
    mine, other = columns(ours), columns(theirs)
    for ref in chosen.refs:
        name = ref.replace(":", "__")
        left, right = (np.array([np.nan if v is None else v for v in side[name]], float) for side in (mine, other))
        np.testing.assert_allclose(left, right, rtol=1e-9, err_msg=name)


def features(world: World, *, seconds: float, rounds: int) -> list[Figure]:
    """Part `features`: requests a second for 1 and for 100 accounts."""
    chosen = choose(list(catalog().schemas.values()))
    ids = [one["sender_id"] for one in world.transactions(4 * ACCOUNTS, seed=21)]
    ids = list(dict.fromkeys(ids))[:ACCOUNTS]
    folder = world.home / "stock"
    store = feast_repo(world, chosen, folder)
    figures = []
    with serving(world) as ours:
        values: dict[str, list[Any]] = {ref: [] for ref in chosen.refs}
        for first in range(0, len(ids), 200):
            found = columns(once(ours.url, request(chosen.refs, ids[first : first + 200])))
            for ref in chosen.refs:
                values[ref] += found[ref.replace(":", "__")]
        feast_fill(store, chosen, ids, values)
        with feast_server(world, folder) as theirs:
            for count, goal in GOALS.items():
                groups = [ids[first : first + count] for first in range(0, len(ids) - count + 1, count)]
                requests = [request(chosen.refs, group) for group in groups]
                same(once(ours.url, requests[0]), once(theirs.url, requests[0]), chosen)
                sides: dict[str, list[Load]] = {ours.url: [], theirs.url: []}
                for _ in range(rounds):
                    for url, loads in sides.items():
                        loads.append(closed_loop(url, requests, connections=CONNECTIONS[count], seconds=seconds))
                figures += compared(count, goal, sides[ours.url], sides[theirs.url])
    return figures


def compared(count: int, goal: float, ours: list[Load], theirs: list[Load]) -> list[Figure]:
    """Throughput and latency of one size."""
    for name, loads in (("ours", ours), ("feast serve", theirs)):
        failed = sum(load.failed for load in loads)
        note(f"  {name}, {count}: {' '.join(f'{load.per_second:.0f}' for load in loads)} requests/s, {failed} failed")
    shown = f"60 features of 4 views, {CONNECTIONS[count]} connections, a process each; median of {len(ours)} in turn"
    rate, peer_rate = (float(np.median([one.per_second for one in side])) for side in (ours, theirs))
    late, peer_late = (float(np.median([one.quantile_ms(0.99) for one in side])) for side in (ours, theirs))
    name = f"get-online-features, {count} {'entity' if count == 1 else 'entities'}"
    return [
        Figure(
            name=name, value=rate, unit="requests/s", better="higher", peer="feast serve", peer_value=peer_rate,
            goal=goal, goal_on="ratio", conditions=shown,
        ),
        Figure(name=f"{name}: p99", value=late, unit="ms", peer="feast serve", peer_value=peer_late, conditions=shown),
    ]  # fmt: skip
