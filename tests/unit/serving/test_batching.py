"""Small requests scored together: each gets its own answer, nobody waits while a worker is free, errors stay alone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graph_features.errors import ModelError
from serving.admission import Admission, BusyError
from serving.batching import Batcher, merged, parts
from serving.scorer import ModelRef, Shard, ShardScorer, ShardScores

REF = ModelRef(name="m", version="1", alias="a", path="")


def of_rows(*amounts: int, tiny: SimpleNamespace) -> Shard:
    payments = tiny.payments_of([(f"s{amount}", f"r{amount}", tiny.T0) for amount in amounts])
    payments.amount[:] = amounts
    return Shard(transactions=payments)


class Workers:
    """Answers each payment with its amount, when told to; refuses groups with a payment of 13."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go = asyncio.Event()

    async def score(self, model: ModelRef, shard: Shard) -> ShardScores:
        amounts = shard.transactions.amount
        self.groups.append(amounts.tolist())
        await self.go.wait()
        if 13 in amounts:
            raise ModelError("unlucky")
        both = np.concatenate([amounts, amounts + 1_000])[None]
        return ShardScores(
            score=amounts.astype(np.float32), as_of_ms=both, created_us=both, state=both.astype(np.int8),
            read_ms=0, build_ms=0, infer_ms=0,
        )  # fmt: skip


def test_what_comes_while_all_workers_are_busy_goes_together(tiny: SimpleNamespace) -> None:
    """The first request is sent at once; those that come meanwhile share one task, and each gets its own rows."""

    async def run() -> tuple[Workers, list[ShardScores]]:
        workers = Workers()
        batcher = Batcher(workers.score, workers=1, max_rows=100)
        tasks = [asyncio.create_task(batcher.score(REF, of_rows(1, tiny=tiny)))]
        await asyncio.sleep(0.01)
        assert workers.groups == [[1]]
        tasks += [asyncio.create_task(batcher.score(REF, of_rows(at, at + 50, tiny=tiny))) for at in (2, 3, 4)]
        await asyncio.sleep(0.01)
        assert workers.groups == [[1]]
        workers.go.set()
        return workers, await asyncio.gather(*tasks)

    workers, results = asyncio.run(run())
    assert workers.groups == [[1], [2, 52, 3, 53, 4, 54]]
    assert [result.score.tolist() for result in results] == [[1], [2, 52], [3, 53], [4, 54]]
    assert results[2].as_of_ms.tolist() == [[3, 53, 1_003, 1_053]]


def test_one_bad_request_fails_alone(tiny: SimpleNamespace) -> None:
    """A group that fails must be tried one by one: the others get their scores."""

    async def run() -> list[Any]:
        workers = Workers()
        workers.go.set()
        batcher = Batcher(workers.score, workers=1, max_rows=100)
        asked = (batcher.score(REF, of_rows(at, tiny=tiny)) for at in (1, 13, 5))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = asyncio.run(run())
    assert isinstance(second, ModelError)
    assert (first.score.tolist(), third.score.tolist()) == ([1], [5])


def test_groups_hold_one_model_and_no_more_than_fits(tiny: SimpleNamespace) -> None:
    """Requests of another model, and those beyond max_rows, must go in a task of their own; large ones never wait."""

    async def run() -> Workers:
        workers = Workers()
        batcher = Batcher(workers.score, workers=1, max_rows=4)
        other = ModelRef(name="m", version="2", alias="a", path="")
        asked = [(REF, (1, 2)), (other, (3,)), (REF, (4, 5)), (REF, (6,)), (REF, (7, 8, 9))]
        tasks = [asyncio.create_task(batcher.score(ref, of_rows(*amounts, tiny=tiny))) for ref, amounts in asked]
        await asyncio.sleep(0.01)
        workers.go.set()
        await asyncio.gather(*tasks)
        return workers

    assert asyncio.run(run()).groups == [[7, 8, 9], [1, 2, 4, 5], [3], [6]]


def test_together_is_bit_for_bit_as_alone(tiny: SimpleNamespace, online: Any, model: Any) -> None:
    """Merged shards taken apart must give what each shard gives by itself."""
    online.put(tiny.ACTIVITY, ("s1",), tiny.T0 - 5, sent=3, mean=1.5)
    online.mark_pending([("r2",)])
    shards = [of_rows(1, 2, tiny=tiny), of_rows(3, tiny=tiny), of_rows(4, 5, 6, tiny=tiny)]
    scorer = ShardScorer(online)
    together = parts(scorer.score(model.ref, merged(shards)), [len(shard) for shard in shards])
    for shard, found in zip(shards, together, strict=True):
        alone = scorer.score(model.ref, shard)
        for name in ("score", "as_of_ms", "created_us", "state"):
            assert getattr(found, name).tobytes() == getattr(alone, name).tobytes(), name


def test_work_is_refused_when_it_would_wait_too_long() -> None:
    """The wait follows from how long the last work took among how much; with nothing at work everything is let in."""
    admission = Admission(limit_s=1.0)
    among = admission.enter(100)
    admission.observe(0.5, among=among)
    assert admission.wait_s == pytest.approx(0.5)
    admission.enter(200)
    with pytest.raises(BusyError):
        admission.enter(1)
    admission.leave(200)
    admission.enter(1)
    admission.leave(1)
    admission.leave(100)
    admission.observe(60.0, among=1)
    assert admission.enter(1_000) == 1_000
