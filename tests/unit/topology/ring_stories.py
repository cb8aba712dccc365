"""Random histories with rings in them, and every feature of account_rings by trying everything."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from graph_features.clock import DAY_MS, HOUR_MS
from graph_features.rings import THINGS

NOW = 19_000 * DAY_MS
WINDOW = 7 * DAY_MS
LOOK_BACK = 30 * DAY_MS
NEAR = 8


@dataclass(frozen=True, kw_only=True)
class Story:
    """A drawn history: what tests/unit/topology/conftest.History takes."""

    payments: list[tuple[str, str, int]]
    statuses: list[tuple[int, str, int]]
    labels: list[tuple[int, str | None, int]]
    columns: list[dict[str, Any]]

    def given(self) -> dict[str, Any]:
        return vars(self)


# Steps of twelve hours make ties and gaps of exactly one window, one day and 30 days; offsets lie beside them.
moments = st.builds(
    lambda steps, offset: NOW - steps * 12 * HOUR_MS + offset,
    st.one_of(st.integers(0, 8), st.integers(0, 20), st.sampled_from([0, 1, 59, 60, 61])),
    st.sampled_from([0, 0, 0, -1, 1]),
)


@st.composite
def rings(draw: st.DrawFn) -> list[tuple[str, str, int]]:
    """A cycle, or two steps short of one, in order of time."""
    members = draw(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=7, unique=True))
    start = draw(moments)
    gap = draw(st.sampled_from([1, HOUR_MS, 12 * HOUR_MS]))
    pairs = itertools.pairwise([*members, members[0]])
    return [(sender, receiver, start + i * gap) for i, (sender, receiver) in enumerate(pairs)]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Up to eight accounts, random payments and planted rings, shared things, statuses and labels early or late."""
    accounts = "abcdefgh"[: draw(st.integers(2, 8))]
    some = st.sampled_from(accounts)
    # Sizes are drawn apart: lists left to themselves stay short, and limits are never met.
    size, n_rings = draw(st.integers(1, 40)), draw(st.integers(0, 2))
    payments = draw(st.lists(st.tuples(some, some, moments), min_size=size, max_size=size))
    payments += [payment for ring in draw(st.lists(rings(), min_size=n_rings, max_size=n_rings)) for payment in ring]
    which = st.integers(0, len(payments) - 1)
    thing = st.sampled_from([None, "x", "y", "z"])
    column = st.builds(
        dict, amount_base=st.sampled_from([0, 1, 99, 100, 10**15]), device_id=thing, card_id=thing, ip=thing
    )
    return Story(
        payments=payments,
        statuses=draw(
            st.lists(st.tuples(which, st.sampled_from(["failed", "completed", "reversed"]), moments), max_size=6)
        ),
        labels=draw(
            st.lists(st.tuples(which, st.sampled_from(["sender", "receiver", "both", None]), moments), max_size=8)
        ),
        columns=draw(st.lists(column, min_size=len(payments), max_size=len(payments))),
    )


@dataclass(frozen=True, kw_only=True)
class Paid:
    """One payment that counts."""

    id: str
    sender: str
    receiver: str
    ts_ms: int
    amount: int


def latest(changes: Sequence[tuple[int, Any, int]]) -> dict[int, Any]:
    known = sorted((change for change in changes if change[2] < NOW), key=lambda change: change[2])
    return {payment: value for payment, value, _ in known}


def standing(story: Story) -> list[Paid]:
    """Payments that count, by (time, transaction id)."""
    status = latest(story.statuses)
    found = [
        Paid(id=f"t{i}", sender=s, receiver=r, ts_ms=ts, amount=story.columns[i].get("amount_base", 100))
        for i, (s, r, ts) in enumerate(story.payments)
        if NOW - LOOK_BACK <= ts < NOW and s != r and status.get(i) not in {"failed", "reversed"}
    ]
    return sorted(found, key=lambda p: (p.ts_ms, p.id))


def is_step(paid: list[Paid], e: Paid, f: Paid) -> bool:
    """Whether money may have passed from e on to f, near enough to be followed."""
    account = e.receiver
    made = [p for p in paid if p.sender == account and p.ts_ms > e.ts_ms][:NEAR]
    received = [p for p in paid if p.receiver == account and p.ts_ms < f.ts_ms][-NEAR:]
    return f in made and e in received


def is_end(paid: list[Paid], first: Paid, last: Paid) -> bool:
    """Whether `last` brings back what `first` sent off, near enough to be followed."""
    account = first.sender
    received = [p for p in paid if p.receiver == account and p.ts_ms > first.ts_ms][:NEAR]
    made = [p for p in paid if p.sender == account and p.ts_ms < last.ts_ms][-NEAR:]
    return last in received and first in made


def cycles(paid: list[Paid]) -> list[list[Paid]]:
    """Every cycle of up to six payments, by trying everything."""
    steps = {e.id: [f for f in paid if f.sender == e.receiver and is_step(paid, e, f)] for e in paid}

    def extend(path: list[Paid]) -> Iterator[list[Paid]]:
        for f in steps[path[-1].id]:
            if f.ts_ms - path[0].ts_ms >= WINDOW:
                continue
            if f.receiver == path[0].sender:
                if is_end(paid, path[0], f):
                    yield [*path, f]
            elif len(path) < 5 and f.receiver not in {p.receiver for p in path}:
                yield from extend([*path, f])

    return [cycle for first in paid for cycle in extend([first])]


def widest_fan(times: list[tuple[int, str]]) -> int:
    spans = [{other for ts, other in times if start <= ts < start + DAY_MS} for start, _ in times]
    return max(map(len, spans), default=0)


def widths(paid: list[Paid]) -> dict[tuple[str, str], tuple[int, set[str]]]:
    """Per source and sink the most intermediaries in a window, and all that linked them within one."""
    paths: dict[tuple[str, str], list[tuple[Paid, Paid]]] = {}
    for e, f in itertools.product(paid, paid):
        linked = e.receiver == f.sender and is_step(paid, e, f)
        if linked and e.sender != f.receiver and f.ts_ms - e.ts_ms < WINDOW:
            paths.setdefault((e.sender, f.receiver), []).append((e, f))
    result = {}
    for ends, found in paths.items():
        starts = [e.ts_ms for e, _ in found]
        inside = [{e.receiver for e, f in found if e.ts_ms >= t and f.ts_ms < t + WINDOW} for t in starts]
        result[ends] = (max(map(len, inside)), {e.receiver for e, _ in found})
    return result


def gather_scatter(paid: list[Paid], account: str) -> int:
    best = 0
    for t in [p.ts_ms for p in paid if p.sender == account]:
        payers = {p.sender for p in paid if p.receiver == account and t - WINDOW <= p.ts_ms < t}
        payees = {p.receiver for p in paid if p.sender == account and t <= p.ts_ms < t + WINDOW}
        best = max(best, min(len(payers), len(payees)))
    return best


def sharers(story: Story, account: str, thing: str) -> set[str]:
    """Other accounts that paid with a thing of the account's before now."""
    users: dict[str, set[str]] = {}
    for (sender, _, ts_ms), column in zip(story.payments, story.columns, strict=True):
        value = column["ip" if thing == "ip" else f"{thing}_id"]
        if ts_ms < NOW and value is not None:
            users.setdefault(value, set()).add(sender)
    return {user for group in users.values() if account in group for user in group} - {account}


def frauds(story: Story) -> set[str]:
    named: set[str] = set()
    for payment, party in latest(story.labels).items():
        sender, receiver, ts_ms = story.payments[payment]
        if ts_ms < NOW:
            named |= {"sender": {sender}, "receiver": {receiver}, "both": {sender, receiver}, None: set()}[party]
    return named


def expected(story: Story, account: str) -> dict[str, Any]:
    """Every feature of one account."""
    paid = standing(story)
    through = [cycle for cycle in cycles(paid) if account in {p.sender for p in cycle}]
    longer = [cycle for cycle in through if len(cycle) > 2]
    wide = widths(paid)
    known = frauds(story)
    result = {
        "cycle_count_30d": len(longer),
        "cycle_length_min_30d": min(map(len, longer), default=None),
        "cycle_amount_kept_max_30d": max(
            (min(p.amount for p in cycle) / (max(p.amount for p in cycle) or 1) for cycle in longer), default=None
        ),
        "cycle_last_timestamp_30d": max((cycle[-1].ts_ms for cycle in longer), default=None),
        "round_trip_count_30d": len(through) - len(longer),
        "sent_fan_out_max_30d": widest_fan([(p.ts_ms, p.receiver) for p in paid if p.sender == account]),
        "received_fan_in_max_30d": widest_fan([(p.ts_ms, p.sender) for p in paid if p.receiver == account]),
        "scatter_gather_source_max_30d": max((w for (s, _), (w, _) in wide.items() if s == account), default=0),
        "scatter_gather_sink_max_30d": max((w for (_, r), (w, _) in wide.items() if r == account), default=0),
        "scatter_gather_between_max_30d": max((w for w, linked in wide.values() if account in linked), default=0),
        "gather_scatter_max_30d": gather_scatter(paid, account),
    }
    for thing in THINGS:
        others = sharers(story, account, thing)
        result |= {f"{thing}_shared_accounts": len(others), f"{thing}_shared_frauds": len(others & known)}
    return result
