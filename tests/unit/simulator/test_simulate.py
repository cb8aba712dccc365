"""The simulated history keeps its promises, whatever the size and the seed."""

from __future__ import annotations

import hashlib
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_features.contracts import FRAUD_PARTIES, LABEL_SCHEMA, STATUS_SCHEMA, STATUSES, TRANSACTION_SCHEMA
from graph_features.errors import InvalidInputError
from infra.simulator import SimulationReport, simulate
from infra.simulator.payments import FIRST_RING, SCENARIOS
from infra.simulator.places import CHANNELS, CITIES, CURRENCIES

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
FILES = ("transactions", "statuses", "labels", "truth")


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in FILES}


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[SimulationReport, dict[str, pd.DataFrame]]:
    """A history of ordinary size, made once."""
    folder = tmp_path_factory.mktemp("history")
    return simulate(accounts=1_000, days=40, seed=11, out=folder), tables(folder)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Every file of two runs with the same arguments is the same, byte by byte; another seed makes another history."""
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        simulate(accounts=120, days=20, seed=seed, out=tmp_path / name)
    first, second, other = (digest(tmp_path / name) for name in "abc")
    assert set(first) == {*(f"{name}.parquet" for name in FILES), "README.txt"}
    assert first == second
    assert all(first[name] != other[name] for name in first)


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    """Writing to the same folder again leaves the files of the last run and nothing half-done."""
    simulate(accounts=80, days=5, seed=1, out=tmp_path)
    simulate(accounts=60, days=9, seed=2, out=tmp_path)
    after = digest(tmp_path)
    simulate(accounts=60, days=9, seed=2, out=tmp_path / "alone")
    assert digest(tmp_path / "alone") == after


def test_an_interrupted_run_leaves_what_was_there(tmp_path: Path) -> None:
    """Ctrl-C in the middle removes the drafts and keeps the files of the run before."""
    simulate(accounts=60, days=4, seed=1, out=tmp_path)
    before = digest(tmp_path)

    def interrupt(done: float, total: float | None, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(accounts=60, days=8, seed=2, out=tmp_path, progress=interrupt)
    assert digest(tmp_path) == before


def check_invariants(report: SimulationReport, files: dict[str, pd.DataFrame], *, start: datetime, days: int) -> None:
    transactions, truth = files["transactions"], files["truth"]
    times = transactions.event_timestamp
    assert transactions.transaction_id.is_unique
    assert times.is_monotonic_increasing
    assert times.min() >= start
    assert times.max() < start + timedelta(days=days)
    assert (transactions.amount > 0).all()
    assert (transactions.sender_id != transactions.receiver_id).all()
    assert set(transactions.currency) <= set(CURRENCIES)
    assert set(transactions.channel) <= set(CHANNELS)
    assert truth.transaction_id.is_unique
    assert set(truth.scenario) == set(SCENARIOS)
    assert (truth.ring_id.notna() == truth.scenario.isin(SCENARIOS[FIRST_RING:])).all()
    assert report.scenarios == truth.scenario.value_counts().to_dict()
    assert report.transactions == len(transactions)
    assert report.frauds == len(truth)
    check_outcomes(report, files)


def check_outcomes(report: SimulationReport, files: dict[str, pd.DataFrame]) -> None:
    statuses, labels = files["statuses"], files["labels"]
    when = files["transactions"].set_index("transaction_id").event_timestamp
    assert (report.statuses, report.labels) == (len(statuses), len(labels))
    assert (statuses.status_timestamp.to_numpy() >= when[statuses.transaction_id].to_numpy()).all()
    assert set(statuses.status) <= set(STATUSES)
    assert not statuses.duplicated(["transaction_id", "status", "status_timestamp"]).any()
    failed = set(statuses.transaction_id[statuses.status == "failed"])
    assert not failed & set(statuses.transaction_id[statuses.status != "failed"])
    assert (labels.label_timestamp.to_numpy() > when[labels.transaction_id].to_numpy()).all()
    assert not labels.duplicated(["transaction_id", "label_timestamp"]).any()
    assert set(labels.fraud_party) <= set(FRAUD_PARTIES)
    assert set(labels.transaction_id) == set(when.index)
    newest = labels.sort_values("label_timestamp").groupby("transaction_id").is_fraud.last()
    assert set(newest.index[newest]) == set(files["truth"].transaction_id)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    accounts=st.integers(50, 300),
    days=st.integers(2, 40),
    seed=st.integers(0, 2**63),
    per_day=st.sampled_from([0.001, 0.05, 0.5, 3.0]),
    start=st.integers(0, 120 * 365 * 86_400).map(lambda second: BEGINNING + timedelta(seconds=second)),
)
def test_every_history_keeps_the_rules(accounts: int, days: int, seed: int, per_day: float, start: datetime) -> None:
    """Ids are unique, times are in order, outcomes come after payments, all scenarios are there."""
    with tempfile.TemporaryDirectory() as name:
        report = simulate(
            accounts=accounts, days=days, seed=seed, out=Path(name), start=start, payments_per_day=per_day
        )
        check_invariants(report, tables(Path(name)), start=start, days=days)


def test_files_have_the_contract_s_columns(tmp_path: Path) -> None:
    """Ingest needs no mapping: names and types are the contracts', amounts are decimals in whole units."""
    simulate(accounts=50, days=2, seed=0, out=tmp_path)
    schema = pq.read_schema(tmp_path / "transactions.parquet")
    assert schema.names == [name for name in TRANSACTION_SCHEMA.names if name != "amount_base"]
    assert schema.field("amount").type == pa.decimal128(18, 2)
    assert all(
        schema.field(name).type == TRANSACTION_SCHEMA.field(name).type for name in schema.names if name != "amount"
    )
    assert pq.read_schema(tmp_path / "statuses.parquet").equals(STATUS_SCHEMA)
    assert pq.read_schema(tmp_path / "labels.parquet").equals(LABEL_SCHEMA)
    assert pq.read_schema(tmp_path / "truth.parquet").names == ["transaction_id", "scenario", "ring_id"]


def test_about_one_payment_in_a_hundred_is_fraud(history: tuple[SimulationReport, Any]) -> None:
    """The rate and the volume are what was asked for, about."""
    report, _ = history
    assert report.transactions == pytest.approx(1_000 * 40 * 0.5, rel=0.2)
    assert 0.007 < report.frauds / report.transactions < 0.015


def test_labels_take_about_a_week(history: tuple[SimulationReport, dict[str, pd.DataFrame]]) -> None:
    """Genuine payments are labelled in their eighth day; most frauds sooner, and some are corrected later."""
    _, files = history
    when = files["transactions"].set_index("transaction_id").event_timestamp
    labels = files["labels"]
    delay_days = (labels.label_timestamp.to_numpy() - when[labels.transaction_id].to_numpy()) / np.timedelta64(1, "D")
    assert np.all((delay_days[~labels.is_fraud] >= 7) & (delay_days[~labels.is_fraud] < 8))
    assert 0.4 < np.mean(delay_days[labels.is_fraud] < 7) < 0.9
    assert labels.transaction_id.duplicated().any()


def test_rings_have_the_shape_of_their_name(history: tuple[SimulationReport, dict[str, pd.DataFrame]]) -> None:
    """A cycle returns to its start, fans have one centre, scatter-gather one source, one sink and arms between."""
    _, files = history
    rings = files["truth"].dropna().merge(files["transactions"], on="transaction_id")
    assert rings.groupby("ring_id").scenario.nunique().eq(1).all()
    for (_, scenario), ring in rings.groupby(["ring_id", "scenario"]):
        senders, receivers = set(ring.sender_id), set(ring.receiver_id)
        if scenario == "cycle":
            assert senders == receivers
            assert 3 <= len(senders) <= 6
        elif scenario == "fan_in":
            assert (len(receivers), len(senders)) == (1, len(ring))
        elif scenario == "fan_out":
            assert (len(senders), len(receivers)) == (1, len(ring))
        else:
            assert len(senders - receivers) == len(receivers - senders) == 1
            assert len(senders & receivers) == len(ring) / 2


def test_thefts_look_like_their_name(history: tuple[SimulationReport, dict[str, pd.DataFrame]]) -> None:
    """Terminals are shops that take many cards; stolen accounts are used from devices that the owner never had."""
    _, files = history
    frauds = files["truth"].merge(files["transactions"], on="transaction_id")
    honest = files["transactions"][~files["transactions"].transaction_id.isin(frauds.transaction_id)]
    terminal = frauds[frauds.scenario == "compromised_terminal"]
    assert set(terminal.channel) == {"card_present"}
    assert terminal.groupby("receiver_id").sender_id.nunique().mean() > 5
    assert set(terminal.receiver_id) <= set(honest.receiver_id)
    stolen = frauds[frauds.scenario == "stolen_card"]
    assert stolen.card_id.notna().all()
    takeover = frauds[(frauds.scenario == "account_takeover") & (frauds.channel == "transfer")]
    known = set(zip(honest.sender_id, honest.device_id, strict=True))
    strange = [pair not in known for pair in zip(takeover.sender_id, takeover.device_id, strict=True)]
    assert np.mean(strange) > 0.4


def test_one_payment_alone_does_not_tell(history: tuple[SimulationReport, dict[str, pd.DataFrame]]) -> None:
    """Neither amount nor hour separates fraud from the rest: the best cut of either finds little."""
    _, files = history
    transactions = files["transactions"]
    is_fraud = transactions.transaction_id.isin(files["truth"].transaction_id).to_numpy()
    amount = transactions.amount.astype(float).to_numpy()
    for values in (amount, transactions.event_timestamp.dt.hour.to_numpy()):
        order = np.argsort(values, kind="stable")
        ranks = np.empty(len(values))
        ranks[order] = np.arange(len(values))
        n_fraud = is_fraud.sum()
        area = (ranks[is_fraud].sum() - n_fraud * (n_fraud - 1) / 2) / (n_fraud * (~is_fraud).sum())
        assert 0.35 < area < 0.68


def test_honest_people_do_what_looks_odd_too(history: tuple[SimulationReport, dict[str, pd.DataFrame]]) -> None:
    """There are honest fans, shared devices and addresses, new devices, and payments far from home."""
    _, files = history
    honest = files["transactions"][~files["transactions"].transaction_id.isin(files["truth"].transaction_id)]
    transfers = honest[honest.channel == "transfer"]
    daily = transfers.groupby([transfers.event_timestamp.dt.date, "receiver_id"]).sender_id.nunique()
    assert (daily >= 4).sum() >= 5
    assert (honest.groupby("device_id").sender_id.nunique() > 1).sum() > 20
    assert (honest.groupby("ip").sender_id.nunique() > 5).sum() > 5
    assert (honest.groupby("sender_id").device_id.nunique() > 1).sum() > 100
    assert ((honest.sender_lat - honest.receiver_lat).abs() > 2).mean() > 0.02


def test_places_are_real_and_sometimes_unknown(history: tuple[SimulationReport, dict[str, pd.DataFrame]]) -> None:
    """Coordinates lie near the cities; what is not known of an account is null in all its payments."""
    _, files = history
    transactions = files["transactions"]
    lats = np.array([city.lat for city in CITIES])
    known = transactions.sender_lat.dropna().to_numpy()
    assert np.abs(known[:2_000, None] - lats).min(axis=1).max() < 1
    assert 0.005 < transactions.sender_lat.isna().mean() < 0.1
    assert (transactions.sender_lat.isna() == transactions.sender_country.isna()).all()
    assert transactions.groupby("sender_id").sender_lat.nunique().max() == 1


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    """Progress is told in days and reaches the last one."""
    seen: list[tuple[float, float | None]] = []
    simulate(
        accounts=3_000,
        days=300,
        seed=5,
        out=tmp_path,
        payments_per_day=0.3,
        progress=lambda done, total, text: seen.append((done, total)),
    )
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == (300, 300)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"accounts": 49}, "accounts"),
        ({"days": 1}, "days"),
        ({"seed": -1}, "seed"),
        ({"payments_per_day": 0.0}, "payments_per_day"),
        ({"start": datetime(2099, 12, 1, tzinfo=UTC)}, "start"),
        ({"start": datetime(2020, 1, 1)}, "timestamp"),  # noqa: DTZ001 - a naive time is the point
    ],
)
def test_impossible_arguments_are_named(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    """The error names the argument, and nothing is written."""
    arguments: dict[str, Any] = {"accounts": 50, "days": 2, "seed": 0, "out": tmp_path / "out", **change}
    with pytest.raises(InvalidInputError) as caught:
        simulate(**arguments)
    assert caught.value.field == field
    assert not (tmp_path / "out").exists()
