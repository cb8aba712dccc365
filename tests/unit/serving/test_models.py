"""Which model is in use, and what keeps another from coming into use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graph_features.errors import ModelError, StoreUnavailableError
from serving.metrics import Metrics
from serving.models import ModelFollower
from serving.pool import InlinePool
from serving.scorer import ShardScorer

Follow = Callable[..., ModelFollower]


class Registry:
    """What the alias points to; raises what it holds when that is an error."""

    def __init__(self) -> None:
        self.answer: Any = ModelError("no model: promote one")

    def resolve(self) -> tuple[str, Path]:
        if isinstance(self.answer, Exception):
            raise self.answer
        version, path = self.answer
        return version, path


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def follower(registry: Registry, online: Any, tiny: SimpleNamespace) -> Iterator[ModelFollower]:
    pool = InlinePool(name="inference", size=1, build=lambda: ShardScorer(online))
    yield ModelFollower(
        name="ringfence",
        alias="champion",
        resolve=registry.resolve,
        feature_hash=lambda views: tiny.FEATURE_HASH if views == tuple(tiny.SCHEMAS) else "other views",
        pool=pool,
        metrics=Metrics(),
    )
    pool.close(drain_s=1)


def step(follower: ModelFollower) -> bool:
    return asyncio.run(follower.step())


def in_use(follower: ModelFollower) -> str:
    return follower.require().ref.version


def test_no_model_says_what_to_do(follower: ModelFollower) -> None:
    """Before the first look-up and without a promoted model, asking for one must say what is missing."""
    with pytest.raises(ModelError, match="not looked up yet"):
        follower.require()
    assert not step(follower)
    with pytest.raises(ModelError, match="promote one"):
        follower.ping()


def test_model_is_taken_once(follower: ModelFollower, registry: Registry, model_folder: Path) -> None:
    """A promoted model comes into use at the next look and is not loaded again while the alias stays."""
    registry.answer = ("3", model_folder)
    assert step(follower)
    assert in_use(follower) == "3"
    assert not step(follower)
    assert follower.ping()["version"] == "3"


def test_moved_alias_swaps_and_swaps_back(
    follower: ModelFollower, registry: Registry, model_folder: Path, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    """The version in use follows the alias in both directions."""
    for version, folder in (("1", model_folder), ("2", tiny.write_model(tmp_path / "2")), ("1", model_folder)):
        registry.answer = (version, folder)
        assert step(follower)
        assert in_use(follower) == version


def test_registry_away_keeps_the_model(follower: ModelFollower, registry: Registry, model_folder: Path) -> None:
    """While the registry does not answer, the model in use stays, and its ping says what is wrong."""
    registry.answer = ("1", model_folder)
    step(follower)
    for failure in (StoreUnavailableError("MLflow is away"), RuntimeError("odd")):
        registry.answer = failure
        assert not step(follower)
        assert in_use(follower) == "1"
        assert str(failure) in follower.ping()["problem"]
    registry.answer = ("1", model_folder)
    step(follower)
    assert "problem" not in follower.ping()


def test_model_of_another_feature_set_is_refused(
    follower: ModelFollower, registry: Registry, model_folder: Path, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    """A bundle whose feature hash differs from this server's catalogue must not come into use."""
    registry.answer = ("1", model_folder)
    step(follower)
    registry.answer = ("2", tiny.write_model(tmp_path / "2", feature_hash="feature-set-2"))
    assert not step(follower)
    assert in_use(follower) == "1"
    assert "feature-set-2" in follower.ping()["problem"]


def test_model_that_gives_no_probabilities_is_refused(
    follower: ModelFollower, registry: Registry, model_folder: Path, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    """A model whose golden scores are not between 0 and 1 must not come into use."""
    registry.answer = ("1", model_folder)
    step(follower)
    registry.answer = ("2", tiny.write_model(tmp_path / "2", scale=float("nan")))
    assert not step(follower)
    assert in_use(follower) == "1"
    assert "outside 0 to 1" in follower.ping()["problem"]


def test_broken_bundles_are_refused(
    follower: ModelFollower, registry: Registry, model_folder: Path, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    """Empty folders, cut files and other JSON must leave the model in use alone."""
    registry.answer = ("1", model_folder)
    step(follower)
    cut, other = tiny.write_model(tmp_path / "cut"), tiny.write_model(tmp_path / "other")
    (cut / "model.onnx").write_bytes((cut / "model.onnx").read_bytes()[:50])
    (other / "spec.json").write_text('{"format_version": 1}')
    (tmp_path / "empty").mkdir()
    for version, folder in enumerate((tmp_path / "empty", cut, other), start=2):
        registry.answer = (str(version), folder)
        assert not step(follower)
        assert in_use(follower) == "1"
        assert follower.ping()["problem"]


def test_following_survives_failures(follower: ModelFollower, registry: Registry, model_folder: Path) -> None:
    """The background task must go on after a failed look-up and take the model when it comes."""

    async def follow() -> None:
        task = asyncio.create_task(follower.follow(0.01))
        await asyncio.sleep(0.05)
        registry.answer = ("1", model_folder)
        for _ in range(500):
            if follower.current is not None:
                break
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(follow())
    assert in_use(follower) == "1"
