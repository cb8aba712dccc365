"""The parent's side: shards, Route 1, never-seen accounts, deadlines."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

from graph_features.errors import StoreUnavailableError
from serving.assemble import decision_batch, scores_of
from serving.predict import Sheet
from serving.scorer import State


def stored(online: Any, tiny: SimpleNamespace, *accounts: str, as_of_ms: int | None = None, sent: int = 3) -> None:
    """Give accounts available rows in every account view."""
    at = tiny.T0 - 1_000 if as_of_ms is None else as_of_ms
    for account in accounts:
        online.put(tiny.ACTIVITY, (account,), at, sent=sent, mean=10.0)
        online.put(tiny.EXPOSURE, (account,), at, frauds=1)
        online.put(tiny.RANKS, (account,), min(at, tiny.T0 - 1_000), rank=0.5)


def stored_pairs(online: Any, tiny: SimpleNamespace, *pairs: tuple[str, str]) -> None:
    for pair in pairs:
        online.put(tiny.PAIR, pair, tiny.T0 - 1_000, count=2)
        online.put(tiny.PAIR, pair[::-1], tiny.T0 - 1_000, count=1)


def score(predictor: Any, model: Any, payments: Any, **options: Any) -> Sheet:
    sheet: Sheet = asyncio.run(predictor.score(model, payments, **options))
    return sheet


def problems(sheet: Sheet, model: Any) -> list[list[tuple[str, str, str, str | None]]]:
    scores = scores_of(sheet, [str(at) for at in range(len(sheet))], model)
    return [[(item.role, item.view, item.reason, item.cause) for item in found.degraded] for found in scores]


def unseen(sheet: Sheet, model: Any) -> list[list[str]]:
    return [found.unseen for found in scores_of(sheet, [str(at) for at in range(len(sheet))], model)]


def test_available_rows_need_no_feature_worker(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """When every row is available, nothing may be asked of the feature workers."""
    stored(online, tiny, "a", "b")
    stored_pairs(online, tiny, ("a", "b"))
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0)]))
    assert world.calls == []
    assert sheet.engineered == 0
    assert problems(sheet, model) == [[]]
    assert unseen(sheet, model) == [[]]


def test_split_batches_score_like_whole_ones(
    make_predictor: Any, model: Any, online: Any, tiny: SimpleNamespace
) -> None:
    """Any shard size must give the same scores in the order of the request."""
    for at in range(20):
        stored(online, tiny, f"s{at}", f"r{at}", sent=at)
        stored_pairs(online, tiny, (f"s{at}", f"r{at}"))
    payments = tiny.payments_of([(f"s{at}", f"r{at}", tiny.T0 + at) for at in range(20)])
    whole = score(make_predictor(), model, payments)
    split = score(make_predictor(shard_rows=3), model, payments)
    assert whole.score.tolist() == split.score.tolist()
    assert len(set(whole.score.tolist())) > 10
    assert whole.as_of_ms.tolist() == split.as_of_ms.tolist()


def test_never_seen_accounts_are_normal(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """Accounts that the records do not know are scored as such, said so, and are not degraded."""
    stored(online, tiny, "a")
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "new", tiny.T0), ("new", "newer", tiny.T0)]))
    assert unseen(sheet, model) == [["receiver"], ["sender", "receiver"]]
    assert problems(sheet, model) == [[], []]
    assert world.called("refresh") == []
    assert len(world.called("seen")) == 1


def test_missing_known_account_is_computed_and_stored(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """A known account without rows must be refreshed and scored from what was stored."""
    stored(online, tiny, "b")
    stored_pairs(online, tiny, ("a", "b"))
    world.known = {"a", "b"}
    at = tiny.T0 - 500
    world.truth = {("a",): [(tiny.ACTIVITY, at, {"sent": 7, "mean": 1.0}), (tiny.EXPOSURE, at, {"frauds": 0})]}
    online.put(tiny.RANKS, ("a",), at, rank=0.1)
    payments = tiny.payments_of([("a", "b", tiny.T0)])
    sheet = score(make_predictor(), model, payments)
    assert world.called("refresh") == [(("a",),)]
    assert problems(sheet, model) == [[]]
    assert sheet.as_of_ms[0].tolist() == [at, tiny.T0 - 1_000]
    again = score(make_predictor(), model, payments)
    assert again.score.tolist() == sheet.score.tolist()
    assert len(world.called("refresh")) == 1


def test_view_without_events_is_empty_after_a_refresh(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """A known account that never had a label has no exposure row: that is knowledge, not a miss."""
    stored(online, tiny, "b")
    stored_pairs(online, tiny, ("a", "b"))
    online.put(tiny.RANKS, ("a",), tiny.T0 - 500, rank=0.1)
    world.known = {"a"}
    world.truth = {("a",): [(tiny.ACTIVITY, tiny.T0 - 500, {"sent": 7})]}
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0)]))
    assert problems(sheet, model) == [[]]
    assert unseen(sheet, model) == [[]]
    assert not sheet.state.any()


def test_pending_account_is_refreshed_first(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """A pending account must be scored from rows that have its last event in them."""
    stored(online, tiny, "a", "b")
    stored_pairs(online, tiny, ("a", "b"))
    stale = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0)]))
    online.mark_pending([("a",)])
    world.truth = {("a",): [(tiny.ACTIVITY, tiny.T0 - 2, {"sent": 50, "mean": 3.0})]}
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0)]))
    assert world.called("refresh") == [(("a",),)]
    assert world.called("seen") == []
    assert sheet.as_of_ms[0, 0] == tiny.T0 - 2
    assert sheet.score[0] != stale.score[0]
    assert problems(sheet, model) == [[]]


def test_account_that_stays_pending_is_computed_for_the_payment(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """When events keep coming, the rows are computed as of the payment instead of refreshing for ever."""
    stored(online, tiny, "a", "b")
    stored_pairs(online, tiny, ("a", "b"))
    online.mark_pending([("a",)])

    def keep_coming(method: str) -> None:
        if method == "refresh":
            online.mark_pending([("a",)])

    world.before_answer = keep_coming
    moment = (("a",), tiny.T0)
    world.past = {moment: {"activity": tiny.packed(tiny.ACTIVITY, ("a",), tiny.T0 - 1, sent=99), "exposure": None}}
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0)]))
    assert world.called("rows_at") == [(moment,)]
    assert problems(sheet, model) == [[]]
    assert sheet.as_of_ms[0, 0] == tiny.T0 - 1
    assert online.pending([("a",)])


def test_payment_of_the_past_stores_nothing(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """Rows later than the payment are replaced by rows as of the payment, computed for it and stored nowhere."""
    stored(online, tiny, "a", "b", as_of_ms=tiny.T0 + 10_000)
    stored_pairs(online, tiny, ("a", "b"))
    before = dict(online.rows)
    world.past = {
        ((name,), tiny.T0): {"activity": tiny.packed(tiny.ACTIVITY, (name,), tiny.T0 - 9, sent=1), "exposure": None}
        for name in ("a", "b")
    }
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0)]))
    assert sorted(world.called("rows_at")[0]) == [(("a",), tiny.T0), (("b",), tiny.T0)]
    assert world.called("refresh") == []
    assert online.rows == before
    assert sheet.as_of_ms[0].tolist() == [tiny.T0 - 9, tiny.T0 - 9]
    assert unseen(sheet, model) == [[]]


def test_account_first_seen_after_the_payment_is_unseen(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """An account whose first event lies after the payment was never seen as far as the payment is concerned."""
    stored(online, tiny, "a")
    stored(online, tiny, "b", as_of_ms=tiny.T0 + 10_000)
    stored_pairs(online, tiny, ("a", "b"))
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0)]))
    assert unseen(sheet, model) == [["receiver"]]
    assert problems(sheet, model) == [[]]


def test_new_pair_of_known_accounts_needs_nobody(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """Where the payer's rows are there and nothing is pending, a pair without a row never paid: no work, no remark."""
    stored(online, tiny, "a", "b")
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0)]))
    assert world.called("refresh") == []
    assert problems(sheet, model) == [[]]


def test_pair_without_a_row_that_is_pending_is_computed(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """A mark on the pair says that a payment was accepted: its row must be computed, and no other."""
    stored(online, tiny, "a", "b")
    online.mark_pending([("a", "b")])
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0)]))
    assert [set(keys) for keys in world.called("refresh")] == [{("a", "b")}]
    assert problems(sheet, model) == [[]]


def test_one_cold_account_in_many_payments_is_computed_once(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """An account that comes in many payments, and on both sides, must be asked for once."""
    stored(online, tiny, *(f"r{at}" for at in range(30)))
    for at in range(30):
        stored_pairs(online, tiny, ("cold", f"r{at}"))
    world.known = {"cold"}
    world.truth = {("cold",): [(tiny.ACTIVITY, tiny.T0 - 5, {"sent": 1})]}
    rows = [("cold", f"r{at}", tiny.T0) for at in range(15)] + [(f"r{at}", "cold", tiny.T0) for at in range(15, 30)]
    sheet = score(make_predictor(shard_rows=7), model, tiny.payments_of(rows))
    assert world.called("refresh") == [(("cold",),)]
    assert sheet.engineered == 1


def test_concurrent_requests_for_one_cold_account_share_the_work(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """Requests that want the same account at the same time must cause one computation."""
    stored(online, tiny, "b")
    stored_pairs(online, tiny, ("cold", "b"))
    world.known = {"cold"}
    world.truth = {("cold",): [(tiny.ACTIVITY, tiny.T0 - 5, {"sent": 1})]}
    release = threading.Event()
    world.before_answer = lambda method: release.wait(5) if method == "refresh" else None
    predictor = make_predictor()

    async def many() -> list[Sheet]:
        payments = tiny.payments_of([("cold", "b", tiny.T0)])
        tasks = [asyncio.create_task(predictor.score(model, payments)) for _ in range(8)]
        while len(world.called("refresh")) == 0:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.2)
        release.set()
        return await asyncio.gather(*tasks)

    sheets = asyncio.run(many())
    assert len(world.called("refresh")) == 1
    assert len({float(sheet.score[0]) for sheet in sheets}) == 1
    assert all(problems(sheet, model)[0] == [("sender", "ranks", "missing", None)] for sheet in sheets)


def test_deadline_scores_with_what_there_is(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """What is not computed in time is named in `degraded`, and the reply does not wait."""
    stored(online, tiny, "a", "b")
    stored_pairs(online, tiny, ("a", "b"))
    online.mark_pending([("a",)])
    release = threading.Event()
    world.before_answer = lambda method: release.wait(10)
    predictor = make_predictor(deadline_s=0.2)

    async def impatient() -> tuple[Sheet, float]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        sheet = await predictor.score(model, tiny.payments_of([("a", "b", tiny.T0)]))
        waited = loop.time() - begun
        release.set()
        return sheet, waited

    sheet, waited = asyncio.run(impatient())
    assert waited < 2
    assert problems(sheet, model) == [
        [("sender", "activity", "stale", "deadline"), ("sender", "exposure", "stale", "deadline")]
    ]
    assert sheet.as_of_ms[0, 0] == tiny.T0 - 1_000


def test_missing_row_under_deadline_is_null(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """An account that nobody could ask about must not be scored as never seen."""
    stored(online, tiny, "b")
    release = threading.Event()
    world.before_answer = lambda method: release.wait(10)
    predictor = make_predictor(deadline_s=0.1)

    async def impatient() -> Sheet:
        sheet = await predictor.score(model, tiny.payments_of([("a", "b", tiny.T0)]))
        release.set()
        return sheet

    sheet = asyncio.run(impatient())
    assert unseen(sheet, model) == [[]]
    assert ("sender", "activity", "missing", "deadline") in problems(sheet, model)[0]
    world.before_answer = lambda method: None
    never = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0)]))
    assert unseen(never, model) == [["sender"]]
    assert never.score[0] != sheet.score[0]


def test_failing_feature_workers_degrade_only_what_they_miss(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """When the records are away, payments with available rows are whole, the others say what they lack."""
    stored(online, tiny, "a", "b")
    stored_pairs(online, tiny, ("a", "b"))

    def away(method: str) -> None:
        raise StoreUnavailableError("the records are away")

    world.before_answer = away
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0), ("x", "b", tiny.T0)]))
    found = problems(sheet, model)
    assert found[0] == []
    assert ("sender", "activity", "missing", "unavailable") in found[1]
    assert ("pair", "pair", "missing", "unavailable") in found[1]


def test_key_that_cannot_be_computed_does_not_take_others_along(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """One account whose features fail must leave the others of the same task renewed."""
    stored(online, tiny, "a", "b", "bad")
    stored_pairs(online, tiny, ("a", "b"), ("bad", "b"))
    online.mark_pending([("a",), ("bad",)])
    world.failing = {("bad",)}
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "b", tiny.T0), ("bad", "b", tiny.T0)]))
    found = problems(sheet, model)
    assert found[0] == []
    assert found[1] == [
        ("sender", "activity", "stale", "unavailable"),
        ("sender", "exposure", "stale", "unavailable"),
    ]


def test_only_affected_payments_are_scored_again(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """After Route 1 only the payments whose rows changed go back to the inference workers."""
    stored(online, tiny, *(f"a{at}" for at in range(9)), "b")
    for at in range(9):
        stored_pairs(online, tiny, (f"a{at}", "b"))
    online.mark_pending([("a4",)])
    payments = tiny.payments_of([(f"a{at}", "b", tiny.T0) for at in range(9)])
    score(make_predictor(shard_rows=3), model, payments)
    assert online.reads == 3 + 1


def test_self_payment_is_scored(make_predictor: Any, model: Any, online: Any, tiny: SimpleNamespace) -> None:
    """An account that pays itself is both sides and a pair of one."""
    stored(online, tiny, "a")
    online.put(tiny.PAIR, ("a", "a"), tiny.T0 - 1, count=1)
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "a", tiny.T0)]))
    assert problems(sheet, model) == [[]]


def test_slices_are_degraded_without_asking_anyone(
    make_predictor: Any, model: Any, online: Any, world: Any, tiny: SimpleNamespace
) -> None:
    """Whole-graph rows come on a schedule: too old ones are named, and no feature worker is asked."""
    stored(online, tiny, "a", "b")
    stored_pairs(online, tiny, ("a", "b"))
    late = tiny.T0 + 7_200_000
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "b", late)]))
    assert world.calls == []
    assert problems(sheet, model) == [[("sender", "ranks", "too_old", None), ("receiver", "ranks", "too_old", None)]]


def test_decision_rows_name_the_rows_that_were_used(
    make_predictor: Any, model: Any, online: Any, tiny: SimpleNamespace
) -> None:
    """A decision record must give, per role and view, the version of the row used, and null where there was none."""
    import pyarrow as pa

    stored(online, tiny, "a")
    sheet = score(make_predictor(), model, tiny.payments_of([("a", "new", tiny.T0)]))
    scores = scores_of(sheet, ["t1"], model)
    table = pa.table({"transaction_id": ["t1"], "event_timestamp": [0], "channel": pa.array([None], pa.string())})
    (record,) = decision_batch(sheet, table, scores, model, request_ids=["r"], scored_at_ms=5).rows()
    assert record["rows"]["sender"]["activity"] == [tiny.T0 - 1_000, 1]
    assert record["rows"]["receiver"] == {"activity": None, "exposure": None, "ranks": None}
    assert record["inputs"] == {"transaction_id": "t1"}
    assert record["unseen"] == ["receiver"]
    assert record["fraud_score"] == float(np.float64(sheet.score[0]))
    assert scores[0].decision == ("flag" if scores[0].fraud_score >= 0.5 else "pass")


def test_states_of_sheet_rows_are_judged_per_entity(tiny: SimpleNamespace) -> None:
    """Rows in a state are found among the event views of the entity alone."""
    sheet = Sheet.blank(tiny.spec(), tiny.payments_of([("a", "b", tiny.T0)]))
    names = [view.name for view in sheet.views]
    sheet.state[names.index("ranks"), 0] = State.MISSING
    sheet.state[names.index("pair"), 1] = State.MISSING
    assert sheet.rows_in("account", State.MISSING) == []
    assert sheet.rows_in("pair", State.MISSING) == [1]
    assert sheet.key("pair", 1) == ("b", "a")
