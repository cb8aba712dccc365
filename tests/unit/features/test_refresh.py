"""The pending protocol, and what a refresh writes to both stores."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.catalog import catalog
from graph_features.drivers import on_demand
from graph_features.drivers.batch import event_rows, latest_rows
from graph_features.refresh import refresh
from graph_features.schema import EntityKey, ViewSchema
from graph_features.settings import FeatureSettings
from graph_features.stores.codec import encode

SETTINGS = FeatureSettings()
EVER = 2**60


@dataclass
class MemoryOnline:
    """OnlineStore's part that a refresh uses: newest rows and marks."""

    rows: dict[tuple[str, EntityKey], dict[str, Any]] = field(default_factory=dict)
    marks: dict[EntityKey, str] = field(default_factory=dict)
    fail: Callable[[], None] = lambda: None

    def write(self, view: ViewSchema, table: pa.Table) -> int:
        self.fail()
        for row in view.check(table).to_pylist():
            key = (view.name, tuple(row[name] for name in view.keys))
            if key not in self.rows or _version(self.rows[key]) <= _version(row):
                self.rows[key] = row
        return int(table.num_rows)

    def read(self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]]) -> list[list[bytes | None]]:
        return [[self._packed(view, key) for key in keys] for view, keys in requests]

    def read_with_pending(
        self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]], keys: Sequence[EntityKey]
    ) -> tuple[list[list[bytes | None]], dict[EntityKey, str]]:
        return self.read(requests), self.pending(keys)

    def _packed(self, view: ViewSchema, key: EntityKey) -> bytes | None:
        row = self.rows.get((view.name, key))
        return None if row is None else encode(view, pa.Table.from_pylist([row], view.arrow_schema))[0]

    def mark_pending(self, keys: Sequence[EntityKey]) -> None:
        for key in keys:
            self.marks[key] = str(int(self.marks.get(key, "0")) + 1)

    def pending(self, keys: Sequence[EntityKey]) -> dict[EntityKey, str]:
        return {key: self.marks[key] for key in keys if key in self.marks}

    def all_pending(self) -> dict[EntityKey, str]:
        return dict(self.marks)

    def clear_pending(self, tokens: Mapping[EntityKey, str]) -> None:
        self.marks = {key: token for key, token in self.marks.items() if tokens.get(key) != token}


@dataclass
class MemoryOffline:
    """OfflineStore's part that a refresh uses: the newest version of every row."""

    rows: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)
    versions: int = 0
    fail: Callable[[], None] = lambda: None

    def write(self, view: ViewSchema, table: pa.Table, *, part: str) -> int:
        self.fail()
        for row in view.check(table).to_pylist():
            key = (view.name, *(row[name] for name in view.keys), row["event_timestamp"])
            if key not in self.rows or _version(self.rows[key]) <= _version(row):
                self.rows[key] = row
                self.versions += 1
        return int(table.num_rows)


def _version(row: dict[str, Any]) -> tuple[Any, Any]:
    return row["event_timestamp"], row["created_timestamp"]


class House:
    """Records, marks and both stores; `arrive` is what ingest does."""

    def __init__(self, stories: Any, *, indexed: bool = False) -> None:
        self.records = stories.MemoryRecords(history=stories.History(), indexed=indexed)
        self.online = MemoryOnline()
        self.offline = MemoryOffline()

    def arrive(self, history: Any) -> None:
        known = {payment.id: payment for payment in (*self.records.history.payments, *history.payments)}
        touched = [*history.payments, *(known[change.id] for change in (*history.statuses, *history.labels))]
        keys = {key for p in touched for key in ((p.sender,), (p.receiver,), (p.sender, p.receiver))}
        self.online.mark_pending(sorted(keys))
        known_seq = self.records.history.max_seq
        self.records.history = self.records.history.and_then(history.numbered(after=known_seq))

    def refresh(self, keys: Any = None, **arguments: Any) -> Any:
        stores = {"records": self.records, "online": self.online, "offline": self.offline}
        return refresh(keys, **stores, settings=SETTINGS, **arguments)


def without_version(rows: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "created_timestamp"} for row in rows]


def wanted(history: Any, view: ViewSchema, *, newest: bool) -> list[dict[str, Any]]:
    edges = history.edges()
    if newest:
        tables = latest_rows(view, edges, None, before_ms=EVER, settings=SETTINGS)
    else:
        tables = event_rows(view, edges, from_ms=0, to_ms=EVER, settings=SETTINGS)
    return without_version(row for table in tables for row in table.to_pylist())


VIEWS = catalog().event_views()

examples = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@examples
@given(data=st.data())
def test_arrivals_in_any_order_end_in_the_rows_of_one_backfill(data: Any, stories: Any) -> None:
    """However late things arrive and however often it is refreshed, the stores end as if all had been known at once."""
    house = House(stories, indexed=True)
    for prefix in "tuv":
        known = house.records.history
        house.arrive(data.draw(stories.histories(max_payments=6, max_changes=5, prefix=prefix, of=known)))
        some = sorted(house.online.marks)
        if some and data.draw(st.booleans()):
            house.refresh(data.draw(st.lists(st.sampled_from(some), unique=True)))
        # In bulk, what has no rows gets its newest alone.
        bulk = house.online.marks.keys() <= {key for _, key in house.online.rows}
        house.refresh(bulk_keys=data.draw(st.sampled_from([0, 10**6])) if bulk else 10**6)
        assert house.online.marks == {}
    for view in VIEWS:
        stored = [house.offline.rows[key] for key in sorted(house.offline.rows) if key[0] == view.name]
        assert without_version(stored) == wanted(house.records.history, view, newest=False)
        newest = [row for (name, _), row in sorted(house.online.rows.items()) if name == view.name]
        assert without_version(newest) == wanted(house.records.history, view, newest=True)


@examples
@given(data=st.data())
def test_rows_of_counterparties_tell_what_their_payments_would(data: Any, stories: Any) -> None:
    """Whatever of the stored rows is old, pending or ahead, neighbour rows are those of the batch, bit for bit."""
    house = House(stories)
    some = st.lists(st.tuples(st.sampled_from("abcd")), min_size=1, unique=True)
    for prefix in "tuv":
        known = house.records.history
        house.arrive(data.draw(stories.histories(max_payments=8, max_changes=5, prefix=prefix, of=known)))
        house.refresh(data.draw(some))
    view, history = catalog().schema("account_neighbours"), house.records.history
    keys, before_ms = data.draw(some), data.draw(stories.instants)
    done = on_demand.latest_rows(
        [view], {"account": keys}, house.records, before_ms=before_ms, settings=SETTINGS, online=house.online
    )
    wanted = latest_rows(view, history.edges(), sorted(keys), before_ms=before_ms, settings=SETTINGS)
    assert done.tables[view.name].to_pylist() == [row for table in wanted for row in table.to_pylist()]


def test_the_payments_of_counterparties_with_rows_are_not_read(busy: House) -> None:
    """Once every account has its rows, one account is all that is read for its neighbour row."""
    busy.refresh()
    read: list[list[str]] = []
    plain = busy.records.read_accounts

    def noting(account_ids: Sequence[str], *, before_ms: int) -> Any:
        read.append(list(account_ids))
        return plain(account_ids, before_ms=before_ms)

    busy.records.read_accounts = noting
    done = on_demand.latest_rows(
        [catalog().schema("account_neighbours")],
        {"account": [("c",)]},
        busy.records,
        before_ms=EVER,
        settings=SETTINGS,
        online=busy.online,
    )
    assert done.tables["account_neighbours"].to_pylist() == [busy.online.rows[("account_neighbours", ("c",))]]
    assert read == [["c"]]


@pytest.mark.parametrize("bulk_keys", [0, 100])
@pytest.mark.parametrize("kind", ["payment", "status", "label"])
def test_what_is_late_renews_exactly_the_neighbour_rows_that_it_changes(
    stories: Any, kind: str, bulk_keys: int
) -> None:
    """Rows of counterparties that describe the account after the instant, and no other row, get a new version."""
    house, start = House(stories, indexed=True), stories.START_MS
    pay = functools.partial(stories.Payment, amount=500)
    paid = [("a", "b"), ("b", "c"), ("a", "d"), ("e", "f"), *[("c", "d")] * 16, ("c", "e"), ("d", "f")]
    payments = [
        pay(id=f"t{k:02d}", ts_ms=start + k * 1_000, sender=sender, receiver=receiver)
        for k, (sender, receiver) in enumerate(paid)
    ]
    house.arrive(stories.History(payments=tuple(payments)))
    house.refresh()
    view = catalog().schema("account_neighbours")
    before = {key: row for key, row in house.offline.rows.items() if key[0] == view.name}
    late = {
        "payment": stories.History(payments=(pay(id="late", ts_ms=start + 1_500, sender="b", receiver="z"),)),
        "status": stories.History(statuses=(stories.Change(id="t01", ts_ms=start + 1_500, value="failed"),)),
        "label": stories.History(labels=(stories.Change(id="t01", ts_ms=start + 1_500, value="sender"),)),
    }[kind]
    house.arrive(late)
    house.refresh(bulk_keys=bulk_keys)
    assert house.online.marks == {}
    after = {key: row for key, row in house.offline.rows.items() if key[0] == view.name}
    assert without_version(after[key] for key in sorted(after)) == wanted(house.records.history, view, newest=False)
    renewed = {key for key in before if after[key] != before[key]}
    own = {key for key in before if key[1] in ({"b", "z"} if kind == "payment" else {"b", "c"})}
    others = renewed - own
    assert others, "a describes b"
    assert others == {
        key for key in before.keys() - own if without_version([after[key]]) != without_version([before[key]])
    }


def late_hub(stories: Any) -> House:
    """A hub that six others dealt with, of one of whose payments a label came late; each has later rows."""
    house, start = House(stories, indexed=True), stories.START_MS
    pay = functools.partial(stories.Payment, amount=500)
    pairs = [*((one, "hub") for one in "abcdef"), *((one, "shop") for one in "abcdef")]
    payments = [
        pay(id=f"t{k:02d}", ts_ms=start + k * 1_000, sender=sender, receiver=receiver)
        for k, (sender, receiver) in enumerate(pairs)
    ]
    house.arrive(stories.History(payments=tuple(payments)))
    house.refresh()
    assert house.online.marks == {}
    house.arrive(stories.History(labels=(stories.Change(id="t00", ts_ms=start + 6_500, value="receiver"),)))
    return house


def assert_complete(house: House) -> None:
    """Online and offline, every row is what it would be had all been known at once."""
    view = catalog().schema("account_neighbours")
    rows = {key: row for key, row in house.offline.rows.items() if key[0] == view.name}
    assert without_version(rows[key] for key in sorted(rows)) == wanted(house.records.history, view, newest=False)
    assert house.online.marks == {}


def test_a_hub_whose_counterparties_are_too_many_leaves_the_marks_to_them(stories: Any) -> None:
    """Its own rows are renewed and no longer pending; theirs are pending, and complete when they are refreshed."""
    house = late_hub(stories)
    report = house.refresh(sorted(house.online.marks), bulk_keys=3)
    assert report.failed == {}
    assert house.online.rows[("account_exposure", ("hub",))]["event_timestamp"] is not None
    told = ["b", "c", "d", "e", "f", "shop"]
    assert sorted(house.online.marks) == [(one,) for one in told]
    for one in told:
        house.refresh([(one,)], bulk_keys=3)
    assert_complete(house)


@pytest.mark.parametrize("bulk_keys", [0, 100])
def test_a_crash_after_any_write_leaves_no_counterparty_untold(stories: Any, bulk_keys: int) -> None:
    """However many writes went through before a refresh ended, the next one brings the counterparties up to date."""
    for survived in range(30):
        house, left = late_hub(stories), survived

        def crash() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise ConnectionError("the store is away")

        house.online.fail = crash
        try:
            house.refresh(bulk_keys=bulk_keys)
            break
        except ConnectionError:
            house.online.fail = lambda: None
        house.refresh(bulk_keys=bulk_keys)
        assert_complete(house)
    assert survived >= 3


def test_news_in_order_tell_nobody(stories: Any) -> None:
    """An account without a row learns its whole past, late records too; rows made since hold all that and stay."""
    house = late_hub(stories)
    house.refresh()
    for view in catalog().event_views():
        house.online.rows.pop((view.name, ("hub",)), None)
    pay = stories.Payment(id="new", ts_ms=stories.START_MS + 60_000, sender="a", receiver="hub", amount=500)
    house.arrive(stories.History(payments=(pay,)))
    before = {key: row for key, row in house.online.rows.items() if key[1][0] in "bcdef"}
    assert house.refresh([("a",), ("hub",), ("a", "hub")], bulk_keys=3).failed == {}
    assert house.online.marks == {}
    assert {key: house.online.rows[key] for key in before} == before


def test_a_pair_by_itself_tells_nobody(stories: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refreshing only a pair looks for nothing that was late of its payer, whose own rows say what of it was told."""
    house = late_hub(stories)
    house.refresh()
    asked: list[Sequence[str]] = []
    plain = on_demand._Histories.told

    def noting(self: Any, accounts: Sequence[str], covered: Any) -> Any:
        told = plain(self, accounts, covered)
        asked.append(told.others)
        return told

    monkeypatch.setattr(on_demand._Histories, "told", noting)
    house.online.mark_pending([("hub", "a"), ("a", "hub")])
    assert house.refresh([("hub", "a"), ("a", "hub")], bulk_keys=2).failed == {}
    assert house.online.marks == {}
    assert asked == [()]


@pytest.fixture
def busy(stories: Any) -> House:
    """A house into which a few payments have come."""
    house = House(stories)
    pay = functools.partial(stories.Payment, amount=500)
    payments = [
        pay(id=f"t{k}", ts_ms=stories.START_MS + k * 1_000, sender="abc"[k % 3], receiver="bcd"[k % 3])
        for k in range(9)
    ]
    house.arrive(stories.History(payments=tuple(payments)))
    return house


def test_bulk_writes_the_same_newest_rows_and_leaves_the_past_to_a_backfill(busy: House, stories: Any) -> None:
    """Above `bulk_keys` everything is read once; online is the same, offline holds newest rows only."""
    other = House(stories)
    other.arrive(busy.records.history)
    few, many = busy.refresh(), other.refresh(bulk_keys=0)
    assert other.online.rows == busy.online.rows != {}
    assert other.records.reads == 0 < busy.records.reads
    assert many.rows["account_activity"] == 4 < few.rows["account_activity"]
    assert (few.max_seq, many.max_seq) == (9, 9)
    # What comes next is complete again.
    late = stories.Payment(id="late", ts_ms=stories.START_MS + 4_500, sender="a", receiver="d")
    other.arrive(stories.History(payments=(late,)))
    report = other.refresh(bulk_keys=0)
    edges, view = other.records.history.edges(), catalog().schema("account_activity")
    tables = event_rows(view, edges, from_ms=late.ts_ms, to_ms=EVER, settings=SETTINGS, accounts=["a", "d"])
    after = [row for table in tables for row in table.to_pylist()]
    assert report.rows["account_activity"] == len(after) - 2, "all but the two snapshots before the late payment"


def test_a_mark_renewed_meanwhile_stays(busy: House) -> None:
    """What is ingested after the tokens were read keeps its mark: the next refresh covers it."""
    busy.offline.fail = lambda: busy.online.mark_pending([("a",)]) if busy.online.marks.get(("a",)) == "1" else None
    busy.refresh()
    assert busy.online.marks == {("a",): "2"}
    busy.offline.fail = lambda: None
    busy.refresh()
    assert busy.online.marks == {}


@pytest.mark.parametrize("side", ["online", "offline"])
@pytest.mark.parametrize("bulk_keys", [0, 100])
def test_a_store_that_fails_leaves_every_mark(busy: House, side: str, bulk_keys: int) -> None:
    """A refresh that cannot write clears nothing, and the next one does it all."""
    marks = dict(busy.online.marks)

    def down() -> None:
        raise ConnectionError("the store is away")

    getattr(busy, side).fail = down
    with pytest.raises(ConnectionError):
        busy.refresh(bulk_keys=bulk_keys)
    assert busy.online.marks == marks
    getattr(busy, side).fail = lambda: None
    busy.refresh(bulk_keys=bulk_keys)
    assert busy.online.marks == {}
    views = [view.entity for view in catalog().event_views()]
    assert len(busy.online.rows) == 4 * views.count("account") + 3 * views.count("pair")


def test_named_keys_are_refreshed_pending_or_not(busy: House) -> None:
    """Keys that are asked for get their newest row; the marks of others stay; unknown ones are never seen."""
    busy.online.clear_pending({("a",): "1"})
    report = busy.refresh([("a",), ("b", "c"), ("nobody",), ("b", "a")])
    assert {key for _, key in busy.online.rows} == {("a",), ("b", "c")}
    assert report.never_seen == {("nobody",), ("b", "a")}
    assert ("b", "c") not in busy.online.marks
    assert ("b",) in busy.online.marks
    assert report.rows["account_activity"] == 1, "not pending: its past is known to be there"


def test_hubs_are_left_to_the_batch(busy: House, stories: Any) -> None:
    """Above the limit an account named among few keys stays pending and says why; with all pending it is done."""
    busy.refresh()
    late = stories.Payment(id="late", ts_ms=stories.START_MS + 60_000, sender="b", receiver="a")
    busy.arrive(stories.History(payments=(late,)))
    keys = sorted(busy.online.marks)
    assert keys == [("a",), ("b",), ("b", "a")]
    report = busy.refresh(keys, hub_payments=5)
    assert report.failed.keys() == {("b",), ("b", "a")} == busy.online.marks.keys()
    assert all("more than 5 payments" in reason for reason in report.failed.values())
    stale, fresh = (busy.online.rows[("account_activity", (name,))] for name in "ba")
    assert fresh["received_count_all"] == 1
    assert stale["event_timestamp"] < fresh["event_timestamp"]
    assert busy.refresh(hub_payments=5).failed == {}
    assert busy.online.marks == {}
    assert busy.online.rows[("account_activity", ("b",))]["sent_count_all"] == 4


def test_a_pending_hub_is_described_by_its_last_rows(busy: House, stories: Any) -> None:
    """A counterparty above the limit is not read however many payments it has: its profile is that of its rows."""
    busy.refresh()
    late = stories.Payment(id="late", ts_ms=stories.START_MS + 60_000, sender="b", receiver="a")
    busy.arrive(stories.History(payments=(late,)))
    read: list[list[str]] = []
    plain = busy.records.read_accounts

    def noting(account_ids: Sequence[str], *, before_ms: int) -> Any:
        read.append(list(account_ids))
        return plain(account_ids, before_ms=before_ms)

    busy.records.read_accounts = noting
    busy.refresh([("a",)], hub_payments=5)
    assert read == [["a"]]
    row = busy.online.rows[("account_neighbours", ("a",))]
    assert row["neighbour_ids"][0] == "b"
    assert row["neighbour_profile"][0] == math.log1p(3), "payments that b sent, without the last"


def test_accounts_that_cannot_be_computed_keep_their_mark(busy: House, stories: Any) -> None:
    """One account whose sums do not fit is reported by name; the others are stored and cleared."""
    huge = [
        stories.Payment(id=f"w{k}", ts_ms=stories.START_MS + k, sender="whale", receiver="harbour", amount=10**15)
        for k in range(5_000)
    ]
    busy.arrive(stories.History(payments=tuple(huge)))
    report = busy.refresh()
    assert report.failed.keys() == {("whale",), ("harbour",), ("whale", "harbour")} == busy.online.marks.keys()
    assert "whale: amounts sent add up" in report.failed[("whale",)]
    assert ("account_activity", ("a",)) in busy.online.rows
    assert ("account_activity", ("whale",)) not in busy.online.rows
