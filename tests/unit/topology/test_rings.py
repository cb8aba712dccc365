"""Cycles, fans, scatter-gather and shared things against slow, obvious searches, and at their limits."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.clock import DAY_MS, HOUR_MS
from graph_features.rings import RINGS
from graph_features.rows import AccountRows
from graph_features.settings import FeatureSettings

NOW = 19_000 * DAY_MS
WINDOW = 7 * DAY_MS
LOOK_BACK = 30 * DAY_MS
NEAR = 8
COMPUTE = {feature.schema.name: feature.compute for feature in RINGS.features}

examples = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def values(rows: AccountRows) -> dict[str, list[Any]]:
    """Every column, nulls as None."""
    return {name: [None if v != v else v for v in compute(rows).tolist()] for name, compute in COMPUTE.items()}


@examples
@given(data=st.data())
def test_every_feature_equals_the_slow_way(data: Any, ring_stories: Any, history: Any, rows_at: Any) -> None:
    """Every value of every account must be the one that trying everything gives."""
    story = data.draw(ring_stories.stories())
    edges = history(**story.given()).edges()
    accounts = sorted({a for s, r, ts in story.payments if ts < NOW for a in (s, r)})
    wanted = [ring_stories.expected(story, account) for account in accounts]
    got = values(rows_at(edges, NOW, accounts))
    for name in COMPUTE:
        assert got[name] == [row[name] for row in wanted], name


@pytest.mark.parametrize("seed", range(12))
def test_busy_accounts_equal_the_slow_way(seed: int, ring_stories: Any, history: Any, rows_at: Any) -> None:
    """The same must hold where accounts meet the limits of what is followed, and gaps are often just a window."""
    rng = random.Random(seed)
    accounts = "abcdefghij"[: (3, 4, 6, 10)[seed % 4]]
    times = [NOW - rng.randint(0, 24) * 12 * HOUR_MS - rng.randint(0, 1) for _ in range(90)]
    story = ring_stories.Story(
        payments=[(rng.choice(accounts[:5]), rng.choice(accounts), ts_ms) for ts_ms in times],
        statuses=[(rng.randrange(90), "failed", NOW - 1) for _ in range(5)],
        labels=[(rng.randrange(90), "both", NOW - rng.randint(0, 1)) for _ in range(5)],
        columns=[dict.fromkeys(("device_id", "card_id", "ip"), rng.choice("xyz")) for _ in times],
    )
    wanted = [ring_stories.expected(story, account) for account in accounts]
    got = values(rows_at(history(**story.given()).edges(), NOW, accounts))
    for name in COMPUTE:
        assert got[name] == [row[name] for row in wanted], name


@examples
@given(data=st.data())
def test_neither_future_nor_arrival_changes_a_bit(data: Any, ring_stories: Any, history: Any, rows_at: Any) -> None:
    """What happens or is known at or after as_of must change no past row, nor must the order in which rows come."""
    story, later = data.draw(ring_stories.stories()), data.draw(ring_stories.stories())
    accounts = sorted({a for s, r, ts in story.payments if ts < NOW for a in (s, r)})
    # New accounts before and after the known ones in the order of ids, and the old ones on.
    new = [(s, r, NOW + NOW - ts) for s, r, ts in later.payments if ts <= NOW]
    new += [(f"A{s}", f"z{r}", NOW + i) for i, (s, r, _) in enumerate(later.payments)]
    payments = [*story.payments, *new]
    arrival = data.draw(st.permutations(range(len(payments))))
    after = history(
        payments=payments,
        statuses=[*story.statuses, *((i, "failed", NOW + i % 2) for i in range(len(payments)))],
        labels=[*story.labels, *((i, "both" if i % 3 else None, NOW) for i in range(len(payments)))],
        columns=[*story.columns, *({"device_id": "x", "card_id": "y", "ip": "a"} for _ in new)],
        arrival=arrival,
    )
    before = history(**story.given()).edges()
    assert values(rows_at(before, NOW, accounts)) == values(rows_at(after.edges(), NOW, accounts))


@pytest.mark.parametrize("length", [3, 4, 5, 6])
def test_a_ring_is_found_once_by_all_its_members(length: int, history: Any, by_account: Any) -> None:
    """A cycle must count once, with its length, end and smallest over largest amount, for each account on it."""
    names = "abcdef"[:length]
    times = [NOW - WINDOW + 1 + i for i in range(length - 1)] + [NOW - 1]
    paid = [*zip(names, names[1:] + names[0], times, strict=True), ("x", "a", NOW - 5), ("c", "y", NOW - 4)]
    edges = history(payments=paid, columns=[{"amount_base": 100 - i} for i in range(length)]).edges()
    on_ring = [*names]
    for name, value in {
        "cycle_count_30d": 1,
        "cycle_length_min_30d": length,
        "cycle_amount_kept_max_30d": (101 - length) / 100,
        "cycle_last_timestamp_30d": NOW - 1,
        "round_trip_count_30d": 0,
    }.items():
        found = by_account(edges, NOW, COMPUTE[name])
        assert [found[a] for a in on_ring] == [value] * length, name
    assert by_account(edges, NOW, COMPUTE["cycle_count_30d"])["x"] == 0


def test_what_is_no_cycle(history: Any, by_account: Any) -> None:
    """Seven payments, a tie in time, and one window from first to last must not make a cycle; nor a step backwards."""
    seven = [(f"s{i}", f"s{(i + 1) % 7}", NOW - 100 + i) for i in range(7)]
    tie = [("a", "b", NOW - 9), ("b", "c", NOW - 8), ("c", "a", NOW - 8)]
    long = [("d", "e", NOW - WINDOW - 1), ("e", "f", NOW - 2), ("f", "d", NOW - 1)]
    back = [("g", "h", NOW - 8), ("h", "i", NOW - 9), ("i", "g", NOW - 7)]
    old = [("k", "l", NOW - LOOK_BACK - 1), ("l", "m", NOW - LOOK_BACK), ("m", "k", NOW - LOOK_BACK + 1)]
    edges = history(payments=[*seven, *tie, *long, *back, *old]).edges()
    assert set(by_account(edges, NOW, COMPUTE["cycle_count_30d"]).values()) == {0}


def test_a_reversal_opens_the_ring_once_it_is_known(history: Any, by_account: Any) -> None:
    """A cycle must hold until one of its payments is known to be reversed, and again when it is restored."""
    paid = [("a", "b", NOW - 9), ("b", "c", NOW - 8), ("c", "a", NOW - 7)]
    edges = history(payments=paid, statuses=[(1, "reversed", NOW), (1, "completed", NOW + 10)]).edges()
    counts = [by_account(edges, NOW + wait, COMPUTE["cycle_count_30d"])["a"] for wait in (0, 1, 10, 11)]
    assert counts == [1, 0, 0, 1]


@pytest.mark.parametrize(("between", "found"), [(NEAR - 1, 1), (NEAR, 0)])
def test_a_hub_is_followed_to_the_next_eight(between: int, found: int, history: Any, by_account: Any) -> None:
    """A step must count with seven of an account's own payments in between, made or received, and not with eight."""
    ring = [("a", "b", NOW - 99), ("b", "c", NOW - 50), ("c", "a", NOW - 40)]
    busy = {
        "made on the way": [("b", f"x{i}", NOW - 90 + i) for i in range(between)],
        "received on the way": [(f"x{i}", "b", NOW - 90 + i) for i in range(between)],
        "received where it began": [(f"x{i}", "a", NOW - 90 + i) for i in range(between)],
        "made where it began": [("a", f"x{i}", NOW - 90 + i) for i in range(between)],
    }
    for where, more in busy.items():
        edges = history(payments=[*ring, *more]).edges()
        assert by_account(edges, NOW, COMPUTE["cycle_count_30d"])["a"] == found, where


def test_counts_end_at_their_limits(history: Any, by_account: Any) -> None:
    """4096 cycles must count as 1,000; 150 accounts behind one address as 100, known frauds or not."""
    chain = [("b", "c"), ("c", "d"), ("d", "e"), ("e", "a")]
    paid = [("a", "b", NOW - 100)]
    paid += [(s, r, NOW - 90 + 10 * step + i) for step, (s, r) in enumerate(chain) for i in range(NEAR)]
    edges = history(payments=paid).edges()
    assert set(by_account(edges, NOW, COMPUTE["cycle_count_30d"]).values()) == {1_000}
    many = [(f"u{i:03d}", "shop", NOW - i - 1) for i in range(150)]
    labels = [(i, "sender", NOW - 1) for i in range(101)]
    edges = history(payments=many, labels=labels, columns=[{"ip": "public"}] * 150).edges()
    users = [f"u{i:03d}" for i in range(150)]
    assert {by_account(edges, NOW, COMPUTE["ip_shared_accounts"])[user] for user in users} == {100}
    shared = by_account(edges, NOW, COMPUTE["ip_shared_frauds"])
    assert {shared[user] for user in users} == {100}
    assert shared["shop"] == 0


def test_a_fraud_that_becomes_known_later_counts_later(history: Any, by_account: Any) -> None:
    """A label must count from the instant after it is known, until a later one clears the account."""
    paid = [("a", "x", NOW - 9), ("b", "x", NOW - 8)]
    labels = [(0, "sender", NOW), (0, None, NOW + 50)]
    edges = history(payments=paid, labels=labels, columns=[{"device_id": "phone"}] * 2).edges()
    found = [by_account(edges, NOW + wait, COMPUTE["device_shared_frauds"])["b"] for wait in (0, 1, 50, 51)]
    assert found == [0, 1, 1, 0]


def test_the_window_is_a_setting(history: Any) -> None:
    """Another ring window must give another answer for the same table and instant."""
    edges = history(payments=[("a", "b", NOW - 9_000), ("b", "c", NOW - 8_000), ("c", "a", NOW - 4_000)]).edges()

    def counts(window_s: int) -> list[int]:
        rows = AccountRows(
            edges=edges,
            as_of_ms=np.full(3, NOW, np.int64),
            settings=FeatureSettings(ring_window_s=window_s),
            account=np.arange(3, dtype=np.int32),
        )
        return list(COMPUTE["cycle_count_30d"](rows))

    assert counts(6) == [1, 1, 1]
    assert counts(5) == [0, 0, 0]


def test_nothing_before_the_first_payment(history: Any, rows_at: Any) -> None:
    """Without history every column must be what the catalogue says, for known and unknown accounts, and for no rows."""
    edges = history(payments=[("a", "b", NOW)]).edges()
    found = values(rows_at(edges, NOW, ["a", "nobody"]))
    for feature in RINGS.features:
        assert found[feature.schema.name] == [feature.schema.empty] * 2, feature.schema.name
    nothing = values(rows_at(history(payments=[]).edges(), NOW, []))
    assert set(map(len, nothing.values())) == {0}


def test_refuses_several_instants(history: Any) -> None:
    """Rows of several instants must be refused in every feature, not answered for one of them."""
    edges = history(payments=[("a", "b", 1)]).edges()
    rows = AccountRows(
        edges=edges,
        as_of_ms=np.array([NOW, NOW + 1], np.int64),
        settings=FeatureSettings(),
        account=np.zeros(2, np.int32),
    )
    for compute in COMPUTE.values():
        with pytest.raises(ValueError, match="one as_of"):
            compute(rows)
