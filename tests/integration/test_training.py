"""From stored payments to a promoted model on the embedded profile, through Feast and MLflow, and what may not leak."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from graph_features.backends import open_offline, open_online, open_records
from graph_features.catalog import catalog
from graph_features.clock import DAY_MS, from_ms
from graph_features.contracts import LABEL_SCHEMA, TRANSACTION_SCHEMA
from graph_features.drivers.batch import event_rows, latest_rows, slice_rows
from graph_features.edges import EdgeTable
from graph_features.embeddings import EMBEDDING_VIEWS
from graph_features.errors import ModelError, SchemaMismatchError
from graph_features.jobs.ledger import open_ledger
from graph_features.jobs.records import JobState
from graph_features.jobs.runner import JobRunner
from graph_features.schema import Cadence
from graph_features.settings import FeatureSettings, PlatformSettings, TrainingSettings
from graph_features.stores.blocks import RowBlock
from graph_features.tuples import InputTuples, TransactionColumns, TupleBlocks, build_tuples, row_requests
from infra.model_jobs import model_kinds
from infra.wiring import Platform
from training.bundle import Bundle
from training.embed import free_slot, refresh_embeddings
from training.encoder import Encoder, embedding_view
from training.gates import Gates
from training.head import train_head
from training.history import History, current_spec, open_history
from training.ladder import RUNGS
from training.ladder_run import evaluate_ladder
from training.promote import history as decisions
from training.promote import promote_model
from training.registry import PREVIOUS, Registry
from training.train import TrainReport, train_model

START_MS = 1_700_000_000_000 // DAY_MS * DAY_MS
DAYS = 14
SETTINGS = TrainingSettings(
    label_maturity_s=86_400,
    neighbours=4,
    hidden=16,
    epochs=20,
    patience=20,
    batch_rows=256,
    learning_rate=5e-3,
    seed=3,
    chunk_rows=2_000,
)


def day(number: float) -> datetime:
    return from_ms(START_MS + int(number * DAY_MS))


def payments(seed: int = 7, rows: int = 4_000) -> tuple[pa.Table, pa.Table]:
    """Payments of 60 senders to 40 receivers; some receivers are compromised for days, labels come a day later."""
    generator = np.random.default_rng(seed)
    event_ms = np.sort(START_MS + generator.integers(0, DAYS * DAY_MS, rows))
    sender, receiver = generator.integers(0, 60, rows), generator.integers(0, 40, rows)
    amount = np.round(np.exp(generator.normal(8, 0.7, rows))).astype(np.int64) + 1
    compromised_from = np.where(np.arange(40) % 4 == 0, (np.arange(40) // 4) * 1.2, np.inf)
    days = (event_ms - START_MS) / DAY_MS
    fraud = (days >= compromised_from[receiver]) & (days < compromised_from[receiver] + 4)
    amount[fraud] *= 3
    ids = [f"p{row:05d}" for row in range(rows)]
    columns = {
        "transaction_id": ids,
        "event_timestamp": pa.array(event_ms, TRANSACTION_SCHEMA.field("event_timestamp").type),
        "sender_id": [f"s{code}" for code in sender],
        "receiver_id": [f"r{code}" for code in receiver],
        "amount": amount,
        "currency": ["EUR"] * rows,
        "amount_base": amount,
        "channel": [("card", "online", None)[row % 3] for row in range(rows)],
    }
    missing = {name: [None] * rows for name in TRANSACTION_SCHEMA.names if name not in columns}
    labels = {
        "transaction_id": ids,
        "is_fraud": fraud,
        "label_timestamp": pa.array(event_ms + DAY_MS, LABEL_SCHEMA.field("label_timestamp").type),
        "fraud_party": ["receiver"] * rows,
    }
    return pa.table({**columns, **missing}, TRANSACTION_SCHEMA), pa.table(labels, LABEL_SCHEMA)


def fill(platform: PlatformSettings, transactions: pa.Table, labels: pa.Table) -> None:
    """Store payments and every event row and daily slice of them, offline."""
    from feature_repo import apply

    records = open_records(platform)
    records.create_schema()
    records.write_transactions(transactions)
    records.write_labels(labels)
    stored = records.read_all()
    records.close()
    apply(platform)
    edges = EdgeTable.from_arrow(stored.transactions, stored.statuses, stored.labels, max_seq=stored.max_seq)
    offline = open_offline(platform)
    settings = FeatureSettings()
    for view in catalog().schemas.values():
        if view.cadence is Cadence.SLICE:
            for number in range(DAYS):
                instant = START_MS + number * DAY_MS
                offline.write(view, slice_rows(view, edges, as_of_ms=instant, settings=settings), part=f"s{number}")
        else:
            span = {"from_ms": START_MS, "to_ms": START_MS + (DAYS + 2) * DAY_MS}
            for part, table in enumerate(event_rows(view, edges, settings=settings, **span)):
                offline.write(view, table, part=f"e{part}")
    offline.close()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> PlatformSettings:
    """An embedded home with payments and features in it."""
    made = PlatformSettings(home=tmp_path_factory.mktemp("training"))
    fill(made, *payments())
    return made


@pytest.fixture(scope="module")
def history(platform: PlatformSettings) -> Iterator[History]:
    with open_history(platform, SETTINGS) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(platform: PlatformSettings) -> TrainReport:
    """One registered model."""
    return train_model(
        platform, train_from=day(3), train_to=day(9), test_from=day(10), test_to=day(13), settings=SETTINGS
    )


def read(history: History, start: float, end: float, cut: float) -> InputTuples:
    spec = current_spec(SETTINGS)
    instants = {"start_ms": START_MS + int(start * DAY_MS), "end_ms": START_MS + int(end * DAY_MS)}
    return history.read(spec, **instants, label_cut_ms=START_MS + int(cut * DAY_MS), name="test").tuples


def test_report_has_a_model_better_than_chance(report: TrainReport, platform: PlatformSettings) -> None:
    """Training through Feast finds the compromised receivers; the registered bundle can be loaded by its version."""
    assert report.test is not None
    assert report.test.average_precision > 2 * report.test.frauds / report.test.payments
    assert report.version == "1"
    bundle = Bundle.load(Registry.open(platform.home).download("ringfence", "1"))
    assert bundle.info.feature_hash == catalog().feature_hash(settings=FeatureSettings())
    assert bundle.info.metrics["average_precision"] == pytest.approx(report.test.average_precision)


def test_training_is_repeatable(report: TrainReport, platform: PlatformSettings, history: History) -> None:
    """The same data and seed give the same scores, bit for bit."""
    again = train_model(
        platform,
        train_from=day(3),
        train_to=day(9),
        test_from=day(10),
        test_to=day(13),
        settings=SETTINGS,
        register=False,
    )
    tuples = read(history, 10, 11, 14)
    first, second = Bundle.load(report.bundle).score(tuples), Bundle.load(again.bundle).score(tuples)
    np.testing.assert_array_equal(first, second)


def test_serving_builds_the_same_tuples(platform: PlatformSettings, history: History) -> None:
    """Rows read online as packed values give the tuples that training read through the historical join."""
    spec, before_ms = current_spec(SETTINGS), START_MS + 11 * DAY_MS
    stored = history.records.read_all(before_ms=before_ms)
    settings = FeatureSettings()
    edges = EdgeTable.from_arrow(stored.transactions, stored.statuses, stored.labels, max_seq=stored.max_seq)
    online = open_online(platform)
    for view in spec.views:
        if view.cadence is Cadence.SLICE:
            online.write(view, slice_rows(view, edges, as_of_ms=before_ms, settings=settings))
        else:
            for table in latest_rows(view, edges, None, before_ms=before_ms, settings=settings):
                online.write(view, table)
    everything, _ = payments()
    event_ms = everything["event_timestamp"].cast(pa.int64()).to_numpy()
    # The first payment after the instant: nothing has happened since the rows were written.
    table = everything.slice(int(np.searchsorted(event_ms, before_ms)), 1)
    served = TransactionColumns.from_arrow(table)
    values = online.read(row_requests(spec, served))
    online.close()
    from training.dataset import historical_tuples

    trained = historical_tuples(history.store, spec, table)
    for name, array in build_tuples(spec, served, TupleBlocks.from_packed(spec, values)).feeds().items():
        np.testing.assert_array_equal(array, trained.feeds()[name], err_msg=name)


def test_datasets_are_read_from_disk_until_rows_change(tmp_path: Path) -> None:
    """The second read computes nothing and gives the same; new offline rows, labels or another cut read anew."""
    home = PlatformSettings(home=tmp_path)
    transactions, labels = payments(rows=300)
    fill(home, transactions, labels)
    joined: list[str] = []

    def count(_done: float, _total: float | None, text: str) -> None:
        joined.append(text)

    def read_once(cut: float = 9) -> tuple[InputTuples, bool]:
        joined.clear()
        with open_history(home, SETTINGS) as history:
            instants = {"start_ms": START_MS + 5 * DAY_MS, "end_ms": START_MS + 7 * DAY_MS}
            cut_ms = START_MS + int(cut * DAY_MS)
            found = history.read(current_spec(SETTINGS), **instants, label_cut_ms=cut_ms, name="test", progress=count)
        return found.tuples, bool(joined)

    first, joined_first = read_once()
    again, joined_again = read_once()
    assert (joined_first, joined_again, read_once(cut=8)[1]) == (True, False, True)
    for name, array in first.feeds().items():
        np.testing.assert_array_equal(array, again.feeds()[name], err_msg=name)
    view, offline = catalog().schema("account_activity"), open_offline(home)
    offline.write(view, view.arrow_schema.empty_table(), part="nothing")
    offline.close()
    assert read_once()[1]


def test_the_ladder_measures_every_rung_on_the_same_rows(report: TrainReport, platform: PlatformSettings) -> None:
    """Every rung has figures on the report's own test payments, and the MLflow run holds them."""
    found = evaluate_ladder(platform, test_from=day(10), test_to=day(13), version=report.version, settings=SETTINGS)
    assert list(found.results) == list(RUNGS)
    assert report.test is not None
    assert (found.payments, found.frauds) == (report.test.payments, report.test.frauds)
    reached = {rung: result.average_precision for rung, result in found.results.items()}
    assert min(reached["trees + graph"], reached["network + trees"]) > 2 * found.frauds / found.payments
    assert reached["network"] == pytest.approx(report.test.average_precision, abs=1e-3)
    logged = Registry.open(platform.home).client().get_run(found.run_id).data.metrics
    assert logged["average_precision.network_trees"] == pytest.approx(reached["network + trees"])


def test_future_changes_no_tuple(tmp_path: Path, history: History) -> None:
    """Payments and labels from an instant on, permuted and changed, leave every tuple before it as it was."""
    cut_ms = START_MS + 8 * DAY_MS
    transactions, labels = payments()
    event_ms = transactions["event_timestamp"].cast(pa.int64()).to_numpy()
    label_ms = labels["label_timestamp"].cast(pa.int64()).to_numpy()
    amount = np.where(event_ms >= cut_ms, 999_999, transactions["amount_base"].to_numpy())
    fraud = np.where(label_ms >= cut_ms, ~labels["is_fraud"].to_numpy(), labels["is_fraud"].to_numpy())
    for name in ("amount", "amount_base"):
        position = TRANSACTION_SCHEMA.get_field_index(name)
        transactions = transactions.set_column(position, TRANSACTION_SCHEMA.field(position), pa.array(amount))
    labels = labels.set_column(1, LABEL_SCHEMA.field("is_fraud"), pa.array(fraud))
    other = PlatformSettings(home=tmp_path)
    fill(other, transactions, labels)
    with open_history(other, SETTINGS) as changed:
        after = read(changed, 6, 8, 9)
    before = read(history, 6, 8, 9)
    assert len(before) > 300
    for name, array in before.feeds().items():
        np.testing.assert_array_equal(array, after.feeds()[name], err_msg=name)


def test_promotion_moves_the_alias_and_back(report: TrainReport, platform: PlatformSettings, tmp_path: Path) -> None:
    """A first model is promoted, a second through gates, a rollback restores the first; the trail says who."""
    registry = Registry.open(platform.home)
    gates = tmp_path / "gates.yaml"
    gates.write_text(
        "window_days: 3\nleast_frauds: 5\nlargest_calibration_error: 1\nlargest_average_precision_drop: 1\n"
        "largest_calibration_error_growth: 1\nlargest_latency_ratio: 100\n"
    )
    first = promote_model(platform, version=report.version, gates=gates, who="ann", settings=SETTINGS)
    assert first.promoted, first.reasons
    assert registry.version_of("ringfence", "champion") == "1"
    second = train_model(platform, train_from=day(3), train_to=day(9), seed=4, settings=SETTINGS)
    gates.write_text(gates.read_text() + "largest_card_precision_drop: 1\nlargest_score_shift: 1\n")
    promoted = promote_model(platform, gates=gates, who="bob", settings=SETTINGS)
    assert (promoted.version, promoted.previous, promoted.promoted) == (second.version, "1", True), promoted.reasons
    version, folder = registry.resolve("ringfence", "champion")
    assert version == second.version
    assert Bundle.load(folder).info.seed == 4
    assert registry.tags("ringfence", version)["ringfence.decided_by"] == "bob"
    back = promote_model(platform, rollback=True, who="eve", settings=SETTINGS)
    assert registry.version_of("ringfence", "champion") == "1" == back.version
    with pytest.raises(ModelError, match="none to roll back to"):
        promote_model(platform, rollback=True, settings=SETTINGS)
    trail = decisions(platform, settings=SETTINGS)
    assert [(entry.decision, entry.version, entry.decided_by) for entry in trail] == [
        ("rolled back", "1", "eve"),
        ("promoted", second.version, "bob"),
        ("promoted", "1", "ann"),
    ]
    assert all(entry.moved_at is not None for entry in trail)
    assert trail[1].figures is not None
    assert [model["version"] for model in trail[1].figures["models"]] == [second.version, "1"]
    assert trail[1].gates is not None
    assert trail[1].gates["window_days"] == 3
    # An alias that was moved by hand goes back to what the trail put there last.
    registry.set_alias("ringfence", "champion", second.version)
    back = promote_model(platform, rollback=True, who="eve", settings=SETTINGS)
    assert (registry.version_of("ringfence", "champion"), back.previous) == ("1", second.version)
    assert "by other means" in back.reasons[0]


def test_payments_trained_on_are_not_compared_on(report: TrainReport, platform: PlatformSettings) -> None:
    """The window begins where the training period of the later model ends; without a payment left it is refused."""
    late = train_model(
        platform, train_from=day(3), train_to=day(12), settings=SETTINGS.model_copy(update={"seed": 5, "epochs": 1})
    )
    found = promote_model(platform, version=late.version, settings=SETTINGS).comparison
    assert found is not None
    matured = payments()[0]["event_timestamp"].cast(pa.int64()).to_numpy()
    end_ms = int(matured.max()) + 1 - DAY_MS
    assert found.payments == int(((matured >= START_MS + 12 * DAY_MS) & (matured < end_ms)).sum())
    last = train_model(
        platform, train_from=day(3), train_to=day(14), settings=SETTINGS.model_copy(update={"seed": 6, "epochs": 1})
    )
    refused = promote_model(platform, version=last.version, settings=SETTINGS)
    assert not refused.promoted
    assert "training periods" in refused.reasons[0]


def test_a_model_of_other_features_never_comes_into_service(
    report: TrainReport, platform: PlatformSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constants of the features changed: the version is refused, by force too, and nobody can roll back to it."""
    registry = Registry.open(platform.home)
    before = registry.version_of("ringfence", "champion")
    assert report.version is not None
    others = (str(version.version) for version in registry.versions("ringfence"))
    other = next(version for version in others if version != before)
    monkeypatch.setenv("RINGFENCE_FEATURE_RING_WINDOW_S", "86400")
    for force in (False, True):
        refused = promote_model(platform, version=other, force=force, settings=SETTINGS)
        assert not refused.promoted
        assert "feature hash" in refused.reasons[0]
    assert registry.version_of("ringfence", "champion") == before
    registry.set_alias("ringfence", "champion", other)
    registry.tag("ringfence", other, {PREVIOUS: report.version})
    with pytest.raises(ModelError, match="feature hash"):
        promote_model(platform, rollback=True, settings=SETTINGS)
    registry.set_alias("ringfence", "champion", before or report.version)


def test_worse_challenger_is_refused(report: TrainReport, platform: PlatformSettings, tmp_path: Path) -> None:
    """A gate that does not hold leaves the alias where it was and says why."""
    registry = Registry.open(platform.home)
    before = registry.version_of("ringfence", "champion")
    worse = train_model(
        platform, train_from=day(3), train_to=day(9), settings=SETTINGS.model_copy(update={"seed": 9, "epochs": 1})
    )
    gates = tmp_path / "gates.yaml"
    gates.write_text("window_days: 3\nleast_frauds: 5\nleast_average_precision: 0.999\n")
    refused = promote_model(platform, gates=gates, settings=SETTINGS)
    assert not refused.promoted
    assert any("average precision" in reason for reason in refused.reasons)
    assert worse.version is not None
    assert registry.tags("ringfence", worse.version)["ringfence.decision"] == "refused"
    assert registry.version_of("ringfence", "champion") == before


def test_a_refusal_by_a_job_is_seen(
    report: TrainReport, platform: PlatformSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduled promotion that is refused ends its job as failed, with the reasons, and the trail names the job."""
    monkeypatch.setenv("RINGFENCE_TRAIN_LABEL_MATURITY_S", "86400")
    registry = Registry.open(platform.home)
    before = registry.version_of("ringfence", "champion")
    if before is not None:
        registry.client().delete_registered_model_alias("ringfence", "champion")
    ledger = open_ledger(platform)
    with Platform(platform) as wired:
        runner = JobRunner(ledger=ledger, handlers=model_kinds(wired))
        gates = {"window_days": 3, "least_frauds": 5, "least_average_precision": 0.9999}
        asked = {"version": report.version, "gates": gates}
        job = runner.run(runner.submit("promote", asked, requested_by="schedule nightly"))
        runner.close()
    ledger.close()
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert "was refused: average precision" in job.error
    newest = decisions(platform, settings=SETTINGS)[0]
    assert (newest.decision, newest.version) == ("refused", report.version)
    assert newest.decided_by == f"schedule nightly, job {job.id}"
    assert registry.version_of("ringfence", "champion") is None
    if before is not None:
        registry.set_alias("ringfence", "champion", before)


def test_a_head_runs_on_stored_embeddings(
    report: TrainReport, platform: PlatformSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head trains on embeddings that Feast hands out, is compared with the whole model, and is kept fresh by its job.

    Its rows carry the encoder's id; a job for a model without an encoder writes nothing.
    """
    registry = Registry.open(platform.home)
    assert refresh_embeddings(platform, as_of_ms=[START_MS + 13 * DAY_MS], version="1", settings=SETTINGS) == {}
    head = train_head(
        platform, train_from=day(3), train_to=day(9), test_from=day(10), test_to=day(13), settings=SETTINGS
    )
    assert head.version is not None
    assert head.test is not None
    assert head.test.average_precision > 2 * head.test.frauds / head.test.payments
    folder = registry.download("ringfence", head.version)
    encoder, view = Encoder.load(folder), embedding_view(Bundle.load(folder).info.inputs)
    assert view is not None
    online = open_online(platform)
    (packed,) = online.read([(view, [("s1",), ("r2",)])])
    online.close()
    block = RowBlock.from_packed(view, packed)
    assert block.int64("encoder_id")[0].tolist() == [encoder.info.id] * 2
    assert (block.as_of_ms % DAY_MS == 0).all()
    registry.set_alias("ringfence", "champion", "1")
    gates = Gates(
        window_days=3,
        least_frauds=5,
        largest_average_precision_drop=1,
        largest_card_precision_drop=1,
        largest_calibration_error=1,
        largest_calibration_error_growth=1,
        largest_latency_ratio=100,
        largest_score_shift=1,
    )
    promoted = promote_model(platform, version=head.version, gates=gates, settings=SETTINGS)
    assert promoted.promoted, promoted.reasons
    assert promoted.comparison is not None
    assert promoted.comparison.champion is not None
    written = refresh_embeddings(platform, as_of_ms=[START_MS + 13 * DAY_MS], settings=SETTINGS)
    assert written == {head.version: 100}
    # The next model takes the slot that the champion leaves.
    assert free_slot(platform, SETTINGS, tuple(EMBEDDING_VIEWS.values())).name != view.name
    # Embeddings of features that are computed otherwise now would be another model's.
    monkeypatch.setenv("RINGFENCE_FEATURE_RING_WINDOW_S", "86400")
    with pytest.raises(SchemaMismatchError, match="train a new model"):
        refresh_embeddings(platform, as_of_ms=[START_MS + 13 * DAY_MS], settings=SETTINGS)
    monkeypatch.undo()
    promote_model(platform, rollback=True, settings=SETTINGS)


def test_models_need_no_pickle(
    report: TrainReport, platform: PlatformSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pickle forbidden, MLflow loads the registered model and it scores as the bundle does."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(Registry.open(platform.home).tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/ringfence/{report.version}")
    bundle = Bundle.load(report.bundle)
    scores = next(iter(model.predict(bundle.feeds(bundle.example())).values()))
    np.testing.assert_allclose(scores, bundle.score(bundle.example()), atol=1e-6)


def test_wrong_period_says_what_is_wrong(platform: PlatformSettings) -> None:
    """A period without payments is refused by name, not trained on."""
    with pytest.raises(ModelError, match="no labelled payments"):
        train_model(platform, train_from=day(300), train_to=day(310), settings=SETTINGS)


def test_handbook_protocol_drops_known_senders(platform: PlatformSettings) -> None:
    """Under the book's protocol no payment is left whose sender had a fraud in the training period."""
    report = train_model(
        platform,
        train_from=day(3),
        train_to=day(9),
        test_from=day(10),
        test_to=day(12),
        protocol="handbook",
        settings=SETTINGS,
        register=False,
    )
    assert report.test is not None
    transactions, labels = payments()
    event_ms = transactions["event_timestamp"].cast(pa.int64()).to_numpy()
    senders = transactions["sender_id"].to_numpy()
    fraud = labels["is_fraud"].to_numpy()
    seen = event_ms >= START_MS + 3 * DAY_MS
    kept = 0
    for number in (10, 11):
        known = set(senders[fraud & seen & (event_ms < START_MS + (9 + number - 10) * DAY_MS)].tolist())
        today = (event_ms >= START_MS + number * DAY_MS) & (event_ms < START_MS + (number + 1) * DAY_MS)
        kept += sum(sender not in known for sender in senders[today])
    assert report.test.payments == kept
