"""`POST /predict` beside its limit, the stock chain and two model servers; scores are compared before times are."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import hiredis
import numpy as np
import redis

from bench.http_load import Connection, Load, closed_loop, once, post
from bench.report import Figure
from bench.serving_peers import (
    choose,
    feast_fill,
    feast_repo,
    json_request,
    mlflow_server,
    model_server,
    packed_request,
)
from bench.serving_world import World, serving
from bench.timing import note
from graph_features.catalog import catalog
from graph_features.settings import IngestSettings
from graph_features.stores.keys import row_keys
from graph_features.tuples import InputTuples, TransactionColumns, row_requests
from serving.api import PredictRequest
from serving.parse import decode
from serving.payments import Payments
from serving.scorer import ModelRef, Shard, ShardScorer, ShardScores, judge
from training.bundle import Bundle

LARGE, WORKERS = 1_000, 2
LIMIT_GOAL, CHAIN_GOAL, PEER_GOAL = 1 / 3, 20.0, 2.0
CALLS = 41
CONNECTIONS = {1: 16, LARGE: 2}
TOLERANCE = 1e-5


class Case:
    """Payments to score: the request, and by hand what a worker makes of it."""

    def __init__(self, world: World, count: int, seed: int) -> None:
        self.world = world
        self.payments = world.transactions(count, seed)
        body = json.dumps({"transactions": self.payments}).encode()
        self.request = post("/predict", body)
        rows = Payments(IngestSettings(), future_skew_ms=0).transactions(
            decode(body, PredictRequest).transactions, now_ms=world.now_ms
        )
        self.columns = TransactionColumns.from_arrow(rows.table)

    @cached_property
    def model(self) -> Path:
        """The bundle that the server has fetched."""
        versions = (path for path in (self.world.home / "models" / "ringfence").iterdir() if path.name.isdigit())
        return max(versions, key=lambda path: int(path.name))

    @cached_property
    def bundle(self) -> Bundle:
        return Bundle.load(self.model)

    @cached_property
    def tuples(self) -> InputTuples:
        """Input tuples of these payments, as a worker builds them."""
        from graph_features.tuples import build_tuples

        scorer, spec = ShardScorer(self.world.online), self.bundle.info.inputs
        shard = Shard(transactions=self.columns)
        values, pending = scorer._read(spec, self.columns)
        return build_tuples(spec, self.columns, judge(spec, shard, values, pending).blocks)

    @property
    def feeds(self) -> Sequence[str]:
        return list(self.bundle.feeds(self.tuples))

    def expected(self) -> list[float]:
        """Scores by hand."""
        scores: list[float] = self.scored().score.astype(float).tolist()
        return scores

    def scored(self) -> ShardScores:
        """What a worker makes of these payments, from the rows that are online now."""
        ref = ModelRef(name="ringfence", version=self.model.name, alias="champion", path=str(self.model))
        return ShardScorer(self.world.online).score(ref, Shard(transactions=self.columns))

    def names(self) -> list[bytes]:
        """Keys of every row that these payments are scored from, each once."""
        found = row_requests(self.bundle.info.inputs, self.columns)
        return [name for view, keys in found for name in row_keys("ringfence", view.name, list(dict.fromkeys(keys)))]


class BareMget:
    """MGET of these names on a plain socket: the command packed beforehand, the answer parsed by hiredis."""

    def __init__(self, world: World, names: list[bytes]) -> None:
        settings = world.services.redis
        link: Any = redis.Connection
        self._connection = link(host=settings.host, port=settings.port, password=settings.password.get_secret_value())
        self._connection.connect()
        self._socket: Any = self._connection._sock
        self._command = hiredis.pack_command(("MGET", *names))  # type: ignore[arg-type]

    def __call__(self) -> list[bytes]:
        reader = hiredis.Reader()
        self._socket.sendall(self._command)
        while (found := reader.gets()) is False:
            reader.feed(self._socket.recv(1 << 20))
        values: list[bytes] = found
        return values


def check(found: Sequence[float], expected: Sequence[float], who: str) -> None:
    """Raise AssertionError unless two sides score alike."""
    worst = float(np.abs(np.array(found) - np.array(expected)).max())
    assert worst < TOLERANCE, f"{who} scores otherwise: {worst}"


def ours(body: bytes) -> list[float]:
    """Scores of our reply; none may be degraded."""
    reply = json.loads(body)
    assert not any(score["degraded"] for score in reply["scores"]), "features are missing"
    return [score["fraud_score"] for score in reply["scores"]]


def limit(world: World, *, seconds: float, rounds: int) -> list[Figure]:  # noqa: ARG001 - counted in calls
    """Part `limit`: /predict of 1000 against a bare MGET of the same bytes and one forward pass."""
    figures = []
    with serving(world, workers=WORKERS) as server:
        for count in (LARGE, 1):
            case = Case(world, count, seed=31)
            check(ours(once(server.url, case.request)), case.expected(), "the server")
            read, feeds = BareMget(world, case.names()), case.bundle.feeds(case.tuples)
            size = sum(len(value) for value in read() if value)

            def bare(case: Case = case, read: BareMget = read, feeds: Any = feeds) -> None:
                read()
                case.bundle._session.run(None, feeds)

            took, least = asyncio.run(_in_turn(server.url, case.request, bare))
            shown = f"{size / 1e6:.2f} MB of rows, {len(case.tuples.neighbour_x)} neighbours, {CALLS} in turn"
            note(f"  {count}: {took * 1e3:.1f} ms, limit {least * 1e3:.1f} ms ({shown})")
            figures.append(
                Figure(
                    name=f"/predict of {count}: p50", value=took * 1e3, unit="ms", peer="MGET + forward",
                    peer_value=least * 1e3, goal=LIMIT_GOAL if count == LARGE else None, goal_on="ratio",
                    conditions=f"{shown}; {WORKERS} workers, the limit on one thread",
                )
            )  # fmt: skip
    return figures


async def _in_turn(url: str, request: bytes, bare: Callable[[], None]) -> tuple[float, float]:
    connection = Connection(url)
    ours_s, bare_s = [], []
    for _ in range(CALLS):
        begun = time.perf_counter()
        status, _ = await connection.send(request)
        ours_s.append(time.perf_counter() - begun)
        assert status == 200, status
        begun = time.perf_counter()
        bare()
        bare_s.append(time.perf_counter() - begun)
    connection.close()
    return float(np.median(ours_s)), float(np.median(bare_s))


def peers(world: World, *, seconds: float, rounds: int) -> list[Figure]:
    """Part `peers`: against LitServe and Ray Serve, which get their features in the request."""
    figures: list[Figure] = []
    with serving(world, workers=WORKERS) as server:
        cases = {count: Case(world, count, seed=32) for count in (1, LARGE)}
        once(server.url, cases[1].request)
        for name in ("litserve", "ray"):
            with model_server(world, name, cases[1].model, WORKERS) as peer:
                for count, case in cases.items():
                    for form, make in (("JSON", json_request), ("base64", packed_request)):
                        theirs = make(case.tuples, case.feeds)
                        check(json.loads(once(peer.url, theirs))["scores"], case.expected(), name)
                        sides = {server.url: case.request, peer.url: theirs}
                        loads = _alternate(sides, CONNECTIONS[count], seconds, rounds)
                        goal = PEER_GOAL if form == "JSON" else None
                        figures += _versus(name, form, count, goal, loads[server.url], loads[peer.url])
    return figures


def _alternate(sides: dict[str, bytes], connections: int, seconds: float, rounds: int) -> dict[str, list[Load]]:
    loads: dict[str, list[Load]] = {url: [] for url in sides}
    for _ in range(rounds):
        for url, request in sides.items():
            loads[url].append(closed_loop(url, [request], connections=connections, seconds=seconds))
    return loads


def _versus(name: str, form: str, count: int, goal: float | None, mine: list[Load], other: list[Load]) -> list[Figure]:
    failed = sum(load.failed for load in (*mine, *other))
    rate, peer_rate = (float(np.median([one.per_second for one in side])) for side in (mine, other))
    p50, peer_p50 = (float(np.median([one.quantile_ms(0.5) for one in side])) for side in (mine, other))
    note(f"  {name} {form} {count}: {rate:.0f} against {peer_rate:.0f} requests/s, {failed} failed")
    shown = (
        f"{count} payments a request, {CONNECTIONS[count]} connections, {WORKERS} workers; theirs: features in the "
        f"request as {form}; ours: features from Redis, decisions recorded"
    )
    peer = f"{name} ({form})"
    return [
        Figure(
            name=f"/predict of {count}", value=rate, unit="requests/s", better="higher", peer=peer,
            peer_value=peer_rate, goal=goal, goal_on="ratio", conditions=shown,
        ),
        Figure(
            name=f"/predict of {count}: p50", value=p50, unit="ms", peer=peer, peer_value=peer_p50, conditions=shown
        ),
    ]  # fmt: skip


# ---------------------------------------------------------------- the stock chain


def chain(world: World, *, seconds: float, rounds: int) -> list[Figure]:  # noqa: ARG001 - counted in requests
    """Part `chain`: Feast's get_online_features of both accounts, then `mlflow models serve` of the same model."""
    os.environ.pop("FEAST_FS_YAML_FILE_PATH", None)
    with serving(world, workers=WORKERS) as server:
        case = Case(world, LARGE, seed=33)
        expected = ours(once(server.url, case.request))
        stock = Stock(world, case)
        with mlflow_server(world, case.model.name, WORKERS) as mlflow:
            check(stock.score(mlflow.url), expected, "the stock chain")
            took: dict[str, list[float]] = {"ours": [], "stock": []}
            for _ in range(rounds):
                for side, url in (("ours", server.url), ("stock", mlflow.url)):
                    begun = time.perf_counter()
                    once(url, case.request) if side == "ours" else stock.score(url)
                    took[side].append(time.perf_counter() - begun)
    mine, theirs = (LARGE / float(np.median(took[side])) for side in ("ours", "stock"))
    note(f"  {mine:.0f} against {theirs:.0f} payments/s")
    return [
        Figure(
            name="/predict of 1000", value=mine, unit="payments/s", better="higher", peer="Feast, then MLflow",
            peer_value=theirs, goal=CHAIN_GOAL, goal_on="ratio",
            conditions="one client each; the chain reads 60 features of 2,000 accounts, has the rest for nothing, "
            f"and sends JSON to {WORKERS} MLflow workers",
        )
    ]  # fmt: skip


class Stock:
    """The chain by hand: sixty of an account's columns from Feast, the others and the neighbours as they are."""

    def __init__(self, world: World, case: Case) -> None:
        self._case = case
        spec = case.bundle.info.inputs
        chosen = choose(list(catalog().schemas.values()))
        self._refs = chosen.refs
        self._places = [spec.account.index(ref) for ref in self._refs]
        ids = [*case.columns.sender_id.tolist(), *case.columns.receiver_id.tolist()]
        self._entities = [{"account_id": one} for one in ids]
        # What the model reads of an account at these payments' time, so that both chains feed it the same numbers.
        rows = np.concatenate([case.tuples.sender_x, case.tuples.receiver_x])
        distinct = dict(zip(ids, rows, strict=True))
        columns = np.array(list(distinct.values()), np.float64)[:, self._places]
        values: dict[str, list[float | None]] = {ref: columns[:, at].tolist() for at, ref in enumerate(self._refs)}
        self._store = feast_repo(world, chosen, world.home / "stock-chain")
        feast_fill(self._store, chosen, list(distinct), values)

    def score(self, url: str) -> list[float]:
        """One batch through the chain."""
        found = self._store.get_online_features(self._refs, self._entities, full_feature_names=True).to_dict()
        account_x = np.stack([np.array(found[ref.replace(":", "__")], np.float32) for ref in self._refs], axis=1)
        feeds = {name: np.array(getattr(self._case.tuples, name)) for name in self._case.feeds}
        feeds["sender_x"][:, self._places] = account_x[:LARGE]
        feeds["receiver_x"][:, self._places] = account_x[LARGE:]
        body = json.dumps({"inputs": {name: array.tolist() for name, array in feeds.items()}}).encode()
        predictions = json.loads(once(url, post("/invocations", body)))["predictions"]
        scores = predictions["score"] if isinstance(predictions, dict) else predictions
        return [float(np.ravel(one)[0]) for one in scores]
