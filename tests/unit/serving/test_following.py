"""Models beyond the ordinary swap: golden scores, a registry that is away or hangs, a challenger in the shadow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graph_features.errors import StoreUnavailableError
from serving import models
from serving.last_good import LastGood
from serving.metrics import Metrics
from serving.models import ModelFollower
from serving.pool import InlinePool
from serving.scorer import ShardScorer
from serving.shadow import Shadow
from training.bundle import GOLDEN_FILE

Make = Callable[..., ModelFollower]


class Registry:
    """What the alias points to; raises what it holds when that is an error."""

    def __init__(self) -> None:
        self.answer: Any = StoreUnavailableError("MLflow is away")

    def resolve(self) -> tuple[str, Path]:
        if isinstance(self.answer, Exception):
            raise self.answer
        version, path = self.answer
        return version, path


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def pool(online: Any) -> Iterator[InlinePool]:
    made = InlinePool(name="inference", size=1, build=lambda: ShardScorer(online))
    yield made
    made.close(drain_s=1)


@pytest.fixture
def make(registry: Registry, pool: InlinePool, tmp_path: Path, tiny: SimpleNamespace) -> Make:
    def follower(alias: str = "champion", **options: Any) -> ModelFollower:
        given = {"metrics": Metrics(), "last_good": LastGood(tmp_path / "models", "ringfence", alias), **options}
        return ModelFollower(
            name="ringfence",
            alias=alias,
            resolve=registry.resolve,
            feature_hash=lambda views: tiny.FEATURE_HASH,
            pool=pool,
            **given,
        )

    return follower


def step(follower: ModelFollower) -> bool:
    return asyncio.run(follower.step())


def in_use(follower: ModelFollower) -> str:
    return follower.require().ref.version


def test_model_that_scores_otherwise_than_exported_is_refused(
    make: Make, registry: Registry, model_folder: Path, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    """A bundle whose examples score otherwise here than where it was exported must not come into use."""
    follower = make()
    registry.answer = ("1", model_folder)
    assert step(follower)
    odd = tiny.write_model(tmp_path / "2")
    np.save(odd / GOLDEN_FILE, np.array([0.9, 0.1], np.float32))
    registry.answer = ("2", odd)
    assert not step(follower)
    assert in_use(follower) == "1"
    assert "otherwise than where it was exported" in follower.ping()["problem"]


def test_start_without_registry_serves_the_last_good_model(
    make: Make, registry: Registry, model_folder: Path, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    """With the registry away a new server must serve what the last one did, and the present one once it answers."""
    assert not step(make())
    registry.answer = ("1", model_folder)
    assert step(make())
    registry.answer = StoreUnavailableError("MLflow is away")
    follower = make()
    assert step(follower)
    assert in_use(follower) == "1"
    assert "MLflow is away" in follower.ping()["problem"]
    assert not step(follower)
    registry.answer = ("2", tiny.write_model(tmp_path / "2"))
    assert step(follower)
    assert in_use(follower) == "2"


def test_model_that_cannot_be_remembered_serves(
    make: Make, registry: Registry, model_folder: Path, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    """A disk that takes no note of the model in use must not keep it from use, nor end the following."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    follower = make(last_good=LastGood(in_the_way, "ringfence", "champion"))
    registry.answer = ("1", model_folder)
    assert step(follower)
    registry.answer = ("2", tiny.write_model(tmp_path / "2"))
    assert step(follower)
    assert in_use(follower) == "2"


def test_registry_that_hangs_is_asked_once(make: Make, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that does not end must not pile up threads; what it says in the end counts."""
    release, asked, follower = threading.Event(), [], make()

    def resolve() -> tuple[str, Path]:
        asked.append(1)
        release.wait(10)
        return "1", model_folder

    monkeypatch.setattr(models, "LOOK_UP_TIMEOUT_S", 0.05)
    monkeypatch.setattr(follower, "_resolve", resolve)

    async def looks() -> list[bool]:
        taken = [await follower.step() for _ in range(3)]
        assert "has not answered" in follower._problem
        release.set()
        while not taken[-1]:
            taken.append(await follower.step())
            await asyncio.sleep(0.01)
        return taken

    assert asyncio.run(looks())[:3] == [False] * 3
    assert len(asked) == 1


def test_challenger_scores_beside_and_is_counted(
    make: Make, registry: Registry, pool: InlinePool, online: Any, model: Any, tmp_path: Path, tiny: SimpleNamespace,
    make_predictor: Any,
) -> None:  # fmt: skip
    """The challenger must score what was scored and have its decisions compared; what is too much is left out."""
    for account in ("a", "b"):
        online.put(tiny.ACTIVITY, (account,), tiny.T0 - 5, sent=3, mean=1.5)
    metrics = Metrics()
    # The threshold is what differs: each payment's decision is another one.
    registry.answer = ("2", tiny.write_model(tmp_path / "2", threshold=0.0))
    follower = make("challenger", metrics=metrics, needed=False)
    shadow = Shadow(pool=pool, follower=follower, metrics=metrics, shard_rows=2, timeout_s=5)
    champion = replace(model, info=replace(model.info, threshold=1.1))

    async def run() -> None:
        payments = tiny.payments_of([("a", "b", tiny.T0), ("b", "a", tiny.T0)] * 3)
        sheet = await make_predictor().score(champion, payments)
        shadow.offer(sheet, champion)
        await follower.step()
        for _ in range(5):
            shadow.offer(sheet, champion)
        await asyncio.gather(*shadow._tasks)

    asyncio.run(run())

    def count(outcome: str) -> float | None:
        labels = {"version": "2", "outcome": outcome}
        return metrics.registry.get_sample_value("ringfence_shadow_scores_total", labels)

    assert (count("other decision"), count("left out"), count("same decision")) == (12, 18, 0)
    assert metrics.registry.get_sample_value("ringfence_shadow_difference_sum", {"version": "2"}) == 0
