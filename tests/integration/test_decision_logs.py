"""Decisions as feature logs of Feast, on the embedded and the services profile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import feature_repo
from graph_features.catalog import catalog
from graph_features.clock import created_timestamp, from_ms, to_ms
from graph_features.settings import PlatformSettings, PostgresSettings, Profile, load
from graph_features.sources.base import Traces
from infra.decision_logs import INVALID, NOT_FOUND, NULL_VALUE, PRESENT, DecisionLogs, log_decisions
from infra.wiring import Platform
from serving.decisions import DecisionLog, open_engine
from tests.decisions import VIEW, Decided, decided

NOON = to_ms(datetime(2026, 3, 1, 12, tzinfo=UTC))
VALUE = "activity__sent_count_all"


@pytest.fixture(params=["embedded", pytest.param("services", marks=pytest.mark.services)])
def platform(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlatformSettings:
    if request.param == "embedded":
        return PlatformSettings(home=tmp_path)
    fresh: Callable[[], PostgresSettings] = request.getfixturevalue("fresh_database")
    for prefix, settings in (("POSTGRES", fresh()), ("REDIS", request.getfixturevalue("redis_settings"))):
        for name in type(settings).model_fields:
            value = getattr(settings, name)
            text = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
            monkeypatch.setenv(f"RINGFENCE_{prefix}_{name.upper()}", text)
    return PlatformSettings(profile=Profile.SERVICES, home=tmp_path)


def row(account: str, as_of_ms: int, seq: int, sent: int | None) -> pa.Table:
    schema = catalog().schemas[VIEW].arrow_schema
    values = {"account_id": account, "event_timestamp": from_ms(as_of_ms), "created_timestamp": created_timestamp(seq)}
    return pa.Table.from_pylist([{**dict.fromkeys(schema.names), **values, "sent_count_all": sent}], schema)


def logs(settings: PlatformSettings, part: str) -> list[dict[str, Any]]:
    """What was logged of a part, in the order of the payments."""
    columns = ["__request_id", *(f"{part[0]}_{VALUE}{end}" for end in ("", "__timestamp", "__status"))]
    if settings.profile is Profile.EMBEDDED:
        paths = (settings.home / "decision_log" / part).glob("*.parquet")
        rows = [one for path in paths for one in pq.read_table(path, columns=columns).to_pylist()]
    else:
        import psycopg
        from psycopg.rows import dict_row

        options: Any = load(PostgresSettings).conninfo()
        with psycopg.connect(**options, row_factory=dict_row) as connection:
            rows = connection.execute(f"SELECT {', '.join(columns)} FROM features.decision_log_{part}").fetchall()
    return sorted(rows, key=lambda one: str(one["__request_id"]))


def test_decisions_are_logged_once_with_the_values_they_rested_on(platform: PlatformSettings) -> None:
    """The very version that was used is logged; one replaced since is INVALID, none is NOT_FOUND; all can be erased."""
    feature_repo.apply(platform)
    view = catalog().schemas[VIEW]
    with Platform(platform) as stores:
        written = (row("a", NOON - 10, 3, 7), row("b", NOON - 20, 4, None), row("c", NOON - 30, 9, 5))
        for at, table in enumerate(written):
            stores.offline.write(view, table, part=f"t{at}")
    decisions = DecisionLog(open_engine(platform))
    decisions.create()
    moments = {"scored_at_ms": NOON + 1_000, "event_ms": NOON}
    first = (
        Decided(transaction_id="t1", sender="a", receiver="b", used=((NOON - 10, 3), (NOON - 20, 4))),
        Decided(transaction_id="t2", sender="c", receiver="nobody", used=((NOON - 30, 8), None)),
    )
    decisions.store_segment("one", [decided(*first, request_id="r1", **moments)])
    assert log_decisions(platform, decisions, until_ms=NOON) == 0
    assert log_decisions(platform, decisions, until_ms=NOON + 2_000) == 2
    assert log_decisions(platform, decisions, until_ms=NOON + 2_000) == 0
    late = Decided(transaction_id="t3", sender="a", receiver="a", used=((NOON - 10, 3), (NOON - 10, 3)))
    decisions.store_segment("two", [decided(late, request_id="r1", **moments)])
    assert log_decisions(platform, decisions, until_ms=NOON + 2_000) == 1
    decisions.close()
    payers, payees = logs(platform, "sender"), logs(platform, "receiver")
    t1, t2, t3 = ({**payer, **payee} for payer, payee in zip(payers, payees, strict=True))
    assert [one["__request_id"] for one in (t1, t2, t3)] == ["r1/t1", "r1/t2", "r1/t3"]
    assert (t1[f"s_{VALUE}"], t1[f"s_{VALUE}__status"]) == (7, PRESENT)
    # Feast keeps these in whole seconds.
    assert to_ms(t1[f"s_{VALUE}__timestamp"].replace(tzinfo=UTC)) == (NOON - 10) // 1_000 * 1_000
    assert (t1[f"r_{VALUE}"], t1[f"r_{VALUE}__status"]) == (None, NULL_VALUE)
    assert (t2[f"s_{VALUE}"], t2[f"s_{VALUE}__status"]) == (None, INVALID)
    assert (t2[f"r_{VALUE}"], t2[f"r_{VALUE}__status"]) == (None, NOT_FOUND)
    assert t3[f"r_{VALUE}"] == 7
    place = DecisionLogs(platform)
    traces = Traces(account_id="a", transaction_ids=(), devices=(), cards=(), partners=(), pairs=(), first_ms=None)
    assert place.count(traces) == 5
    place.erase(traces)
    assert (place.count(traces), [one["__request_id"] for one in logs(platform, "sender")]) == (0, ["r1/t2"])
    assert place.purge(from_ms(NOON)) == 0
    assert place.purge(from_ms(NOON + 5_000)) > 0
    assert logs(platform, "sender") == []
