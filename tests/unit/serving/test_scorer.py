"""The worker's side: which rows a score rests on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graph_features.errors import ModelError
from graph_features.tuples import TupleBlocks, build_tuples
from serving.scorer import ABSENT_MS, ModelRef, Shard, ShardScorer, ShardScores, State
from training.bundle import Bundle


@pytest.fixture
def scorer(online: Any) -> ShardScorer:
    return ShardScorer(online)


@pytest.fixture
def ref(model: Any) -> ModelRef:
    reference: ModelRef = model.ref
    return reference


def fill(online: Any, tiny: SimpleNamespace, account: str, as_of_ms: int, **values: Any) -> None:
    online.put(tiny.ACTIVITY, (account,), as_of_ms, **{"sent": 3, "mean": 10.0, "last": None, **values})
    online.put(tiny.EXPOSURE, (account,), as_of_ms, frauds=1)
    online.put(tiny.RANKS, (account,), as_of_ms, rank=0.5)


def states(result: ShardScores, tiny: SimpleNamespace, view: str) -> list[int]:
    names = [item.name for item in tiny.VIEWS]
    return result.state[names.index(view)].tolist()


def test_available_rows_give_the_tuple_builders_score(
    online: Any, scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace
) -> None:
    """A shard with every row available must score exactly as the bundle does on the shared builder's tuples."""
    for account in ("a", "b"):
        fill(online, tiny, account, tiny.T0 - 1_000)
    for pair in (("a", "b"), ("b", "a")):
        online.put(tiny.PAIR, pair, tiny.T0 - 1_000, count=2)
    payments = tiny.payments_of([("a", "b", tiny.T0)])
    result = scorer.score(ref, Shard(transactions=payments))
    stored = online.read(
        [
            (view, [("a",), ("b",)]) if view.entity == "account" else (view, [("a", "b"), ("b", "a")])
            for view in tiny.VIEWS
        ]
    )
    blocks = TupleBlocks.from_packed(tiny.spec(), stored)
    expected = Bundle.load(Path(ref.path)).score(build_tuples(tiny.spec(), payments, blocks))
    assert result.score.tolist() == expected.tolist()
    assert not result.state.any()
    assert (result.as_of_ms == tiny.T0 - 1_000).all()


def test_as_of_of_the_payment_itself_is_available(
    online: Any, scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace
) -> None:
    """A row with as_of equal to the payment's time must be used, one a millisecond later must not."""
    fill(online, tiny, "a", tiny.T0)
    fill(online, tiny, "b", tiny.T0 + 1)
    result = scorer.score(ref, Shard(transactions=tiny.payments_of([("a", "b", tiny.T0)])))
    assert states(result, tiny, "activity") == [0, State.FUTURE]
    assert result.as_of_ms[0].tolist() == [tiny.T0, ABSENT_MS]


def test_missing_event_row_is_null_not_empty(scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace) -> None:
    """A row that is merely missing must not score like an account that never did anything."""
    payments = tiny.payments_of([("a", "b", tiny.T0)])
    missing = scorer.score(ref, Shard(transactions=payments))
    assert states(missing, tiny, "activity") == [State.MISSING, State.MISSING]
    nothing = {name: {0: None, 1: None} for name in ("activity", "exposure", "pair")}
    never = scorer.score(ref, Shard(transactions=payments, overrides=nothing))
    assert states(never, tiny, "activity") == [0, 0]
    assert missing.score[0] != never.score[0]


def test_renewed_rows_that_stay_missing_are_empty(scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace) -> None:
    """After a refresh a missing row means that nothing ever happened in that view."""
    payments = tiny.payments_of([("a", "b", tiny.T0)])
    complete = {"account": [0, 1], "pair": [0, 1]}
    renewed = scorer.score(ref, Shard(transactions=payments, complete=complete))
    nothing = {name: {0: None, 1: None} for name in ("activity", "exposure", "pair")}
    never = scorer.score(ref, Shard(transactions=payments, overrides=nothing))
    assert renewed.score.tolist() == never.score.tolist()
    assert states(renewed, tiny, "exposure") == [0, 0]


def test_pending_account_is_stale_in_its_event_views_only(
    online: Any, scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace
) -> None:
    """A pending mark must make event rows stale, leave slices alone, and the stale row must still be used."""
    for account in ("a", "b"):
        fill(online, tiny, account, tiny.T0 - 1)
    online.mark_pending([("a",)])
    result = scorer.score(ref, Shard(transactions=tiny.payments_of([("a", "b", tiny.T0)])))
    assert states(result, tiny, "activity") == [State.STALE, 0]
    assert states(result, tiny, "exposure") == [State.STALE, 0]
    assert states(result, tiny, "ranks") == [0, 0]
    assert result.as_of_ms[0, 0] == tiny.T0 - 1


def test_pending_pair_is_stale_alone(online: Any, scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace) -> None:
    """A pending pair must not make its accounts stale, nor the pair the other way round."""
    for account in ("a", "b"):
        fill(online, tiny, account, tiny.T0 - 1)
    for pair in (("a", "b"), ("b", "a")):
        online.put(tiny.PAIR, pair, tiny.T0 - 1, count=2)
    online.mark_pending([("b", "a")])
    result = scorer.score(ref, Shard(transactions=tiny.payments_of([("a", "b", tiny.T0)])))
    assert states(result, tiny, "pair") == [0, State.STALE]
    assert states(result, tiny, "activity") == [0, 0]


def test_slice_row_has_a_limit_of_age(online: Any, scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace) -> None:
    """A slice row at its limit is used, a millisecond older it is not, and a missing or later one is named."""
    for account, as_of_ms in (("a", tiny.T0 - 3_600_000), ("b", tiny.T0 - 3_600_001), ("c", tiny.T0 + 1)):
        online.put(tiny.RANKS, (account,), as_of_ms, rank=0.5)
    payments = tiny.payments_of([("a", "b", tiny.T0), ("c", "d", tiny.T0)])
    result = scorer.score(ref, Shard(transactions=payments))
    assert states(result, tiny, "ranks") == [0, State.FUTURE, State.TOO_OLD, State.MISSING]
    assert result.as_of_ms[2].tolist() == [tiny.T0 - 3_600_000, ABSENT_MS, ABSENT_MS, ABSENT_MS]


def test_old_event_row_is_fresh(online: Any, scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace) -> None:
    """An event row is available however long ago its account's last event was."""
    fill(online, tiny, "a", tiny.T0 - 10 * 365 * 86_400_000)
    result = scorer.score(ref, Shard(transactions=tiny.payments_of([("a", "b", tiny.T0)])))
    assert states(result, tiny, "activity")[0] == 0


def test_override_wins_over_the_store(online: Any, scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace) -> None:
    """A row computed for the payment must be used instead of a stored, later or pending one."""
    for account in ("a", "b"):
        fill(online, tiny, account, tiny.T0 + 5_000)
    online.mark_pending([("a",)])
    given = {"activity": {0: tiny.packed(tiny.ACTIVITY, ("a",), tiny.T0 - 7, sent=9, mean=1.0)}}
    result = scorer.score(ref, Shard(transactions=tiny.payments_of([("a", "b", tiny.T0)]), overrides=given))
    assert states(result, tiny, "activity") == [0, State.FUTURE]
    assert result.as_of_ms[0, 0] == tiny.T0 - 7


def test_row_of_another_feature_set_is_missing(
    online: Any, scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace
) -> None:
    """A stored value with another fingerprint must count as missing, never be decoded."""
    fill(online, tiny, "a", tiny.T0 - 1)
    online.rows[("activity", ("a",))] = ((0, 0), tiny.packed(tiny.EXPOSURE, ("a",), tiny.T0 - 1, frauds=1))
    result = scorer.score(ref, Shard(transactions=tiny.payments_of([("a", "b", tiny.T0)])))
    assert states(result, tiny, "activity")[0] == State.MISSING


def test_order_and_repeats_do_not_matter(
    online: Any, scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace
) -> None:
    """Scores must follow the payments, whatever their order, and accounts may come many times in one read."""
    for at, account in enumerate("abcd"):
        fill(online, tiny, account, tiny.T0 - 1, sent=at * 10)
    rows = [("a", "b", tiny.T0), ("c", "a", tiny.T0), ("d", "d", tiny.T0), ("a", "b", tiny.T0)]
    forward = scorer.score(ref, Shard(transactions=tiny.payments_of(rows)))
    backward = scorer.score(ref, Shard(transactions=tiny.payments_of(rows[::-1])))
    assert forward.score.tolist() == backward.score[::-1].tolist()
    assert forward.score[0] == forward.score[3]
    assert online.reads == 2


def test_load_warms_and_names_the_feature_hash(scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace) -> None:
    """Loading must score the bundle's own examples and return the hash it was trained on."""
    assert scorer.load(ref) == tiny.FEATURE_HASH
    assert scorer.golden(ref).shape == (2,)


def test_two_models_live_side_by_side(
    scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """A score names its model: during a swap shards of both versions must be scored, each by its own."""
    other = dataclasses.replace(ref, version="2", path=str(tiny.write_model(tmp_path / "2", scale=-1.0)))
    shard = Shard(transactions=tiny.payments_of([("a", "b", tiny.T0)]))
    first, second = scorer.score(ref, shard).score, scorer.score(other, shard).score
    assert first[0] == pytest.approx(1 - second[0], abs=1e-6)
    assert scorer.score(ref, shard).score.tolist() == first.tolist()


def test_model_without_a_bundle_is_refused(scorer: ShardScorer, ref: ModelRef, tmp_path: Path) -> None:
    """A folder that holds no bundle must be refused with what to do."""
    with pytest.raises(ModelError, match="no model bundle"):
        scorer.load(dataclasses.replace(ref, version="9", path=str(tmp_path)))


def test_explanation_names_what_moves_the_score(
    online: Any, scorer: ShardScorer, ref: ModelRef, tiny: SimpleNamespace
) -> None:
    """The groups are named, and each feature that is told belongs to one of them."""
    for account in ("a", "b"):
        fill(online, tiny, account, tiny.T0 - 1)
    shard = Shard(transactions=tiny.payments_of([("a", "b", tiny.T0)]), explain=True)
    (found,) = scorer.score(ref, shard).explanation
    assert {"sender:activity", "receiver:ranks", "payment", "pair"} <= set(found.groups)
    assert any(effect != 0 for effect in found.groups.values())
    assert all(np.isfinite(one.effect) for one in found.features)
    assert found.neighbours == []
    assert scorer.score(ref, dataclasses.replace(shard, explain=False)).explanation == []
