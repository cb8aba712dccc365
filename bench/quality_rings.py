"""The simulator's laundering rings: what share of each kind's payments a day's budget of alerts finds.

    python -m bench.quality_rings [--accounts 6000 --days 60 --seed 7] [--alerts 100] [--seeds 3]

Payments go through ingest, record store and catalogue, whole-graph features every other day. Trained on the first 60 %
of the days, tested from a week later on; trees on what both parties' own payments tell, trees on all features, the
network, and both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bench.report import Figure, publish
from bench.timing import note
from graph_features.catalog import catalog
from graph_features.clock import DAY_MS
from graph_features.edges import EdgeTable
from graph_features.ingest.ingest import ingest_file
from graph_features.ingest.mapping import load_mapping
from graph_features.input_spec import InputSpec
from graph_features.neighbour_spec import NEIGHBOUR_PROFILE
from graph_features.settings import FeatureSettings, IngestSettings, TrainingSettings
from graph_features.sources.sqlite import SqliteRecords
from graph_features.transaction import TransactionColumns
from infra.simulator import simulate
from training.dataset import Dataset, labelled
from training.ladder import RUNGS, Workshop
from training.metrics import average_precision
from training.point_in_time import tuples_at

RATES = {"USD": "0.917", "GBP": "1.163"}
RUNGS_ASKED = ("trees", "trees + graph", "network", "network + trees")
FIRST_DAY = 7
"""Earlier payments have too little history to learn from."""
MATURITY_S = 8 * 86_400
SLICE_DAYS = 2
CHUNK = 20_000


class World:
    """A simulated history, ingested."""

    def __init__(self, home: Path, *, accounts: int, days: int, seed: int) -> None:
        note("simulating")
        simulate(accounts=accounts, days=days, seed=seed, out=home)
        store = SqliteRecords(home / "records.sqlite")
        note("ingesting")
        for kind in ("transactions", "statuses", "labels"):
            ingest_file(
                home / f"{kind}.parquet",
                kind=kind,
                mapping=load_mapping(),
                records=store,
                settings=IngestSettings(base_currency="EUR", rates=RATES),
                mark_pending=None,
                rejects_path=home / "rejects.csv",
            )
        self.stored = store.read_all()
        self.edges = EdgeTable.from_arrow(self.stored.transactions, self.stored.statuses, self.stored.labels)
        self.truth = pq.read_table(home / "truth.parquet")
        self.settings = FeatureSettings()
        self.start_ms = int(self.edges.ts_ms[0]) // DAY_MS * DAY_MS
        self.spec = InputSpec.derive(
            catalog().schemas.values(),
            feature_hash=catalog().feature_hash(settings=self.settings),
            profile=NEIGHBOUR_PROFILE,
            neighbours=TrainingSettings().neighbours,
        )

    def dataset(self, from_day: int, to_day: int, *, cut_day: int) -> Dataset:
        """Labelled tuples of [from_day, to_day), labels known before `cut_day`."""
        at = [self.start_ms + day * DAY_MS for day in (from_day, to_day, cut_day)]
        payments = labelled(
            self.stored.transactions,
            self.stored.labels,
            start_ms=at[0],
            end_ms=at[1],
            label_cut_ms=at[2],
            maturity_s=MATURITY_S,
        )
        note(f"features of days {from_day} to {to_day}: {len(payments):,} payments, {payments.is_fraud.sum()} frauds")
        return Dataset.concat(list(self._parts(payments.transactions, payments.is_fraud, from_day, to_day)))

    def _parts(self, table: pa.Table, is_fraud: npt.NDArray[np.bool_], from_day: int, to_day: int) -> Iterator[Dataset]:
        slices = [self.start_ms + day * DAY_MS for day in range(from_day, to_day, SLICE_DAYS)]
        edges_of = np.asarray(table["event_timestamp"].cast(pa.int64()).to_numpy(), np.int64)
        # Part by part between slices: each slice is then computed once.
        cuts = np.unique([0, *np.searchsorted(edges_of, slices[1:]), len(edges_of)])
        for first, end in pairwise(cuts):
            part = table.slice(int(first), int(end - first)).combine_chunks()
            columns = TransactionColumns.from_arrow(part)
            here = [at for at in slices if at <= columns.event_ms[0]][-1:]
            yield Dataset(
                tuples=tuples_at(self.spec, self.edges, columns, settings=self.settings, slices_ms=here),
                is_fraud=is_fraud[first:end],
                event_ms=columns.event_ms,
                transaction_id=part["transaction_id"].to_numpy(),
                sender_id=part["sender_id"].to_numpy(),
            )

    def scenario(self, dataset: Dataset) -> npt.NDArray[np.object_]:
        """What made each payment a fraud, None for nothing."""
        of = dict(zip(self.truth["transaction_id"].to_pylist(), self.truth["scenario"].to_pylist(), strict=True))
        return np.array([of.get(one) for one in dataset.transaction_id], object)


def alerts(dataset: Dataset, score: npt.NDArray[np.float64], per_day: int) -> npt.NDArray[np.bool_]:
    """Mark the highest scores of each day."""
    found = np.zeros(len(dataset), np.bool_)
    day = dataset.event_ms // DAY_MS
    for one in np.unique(day):
        rows = np.flatnonzero(day == one)
        found[rows[np.argsort(-score[rows], kind="stable")[:per_day]]] = True
    return found


def measure(world: World, *, days: int, per_day: int, seeds: int) -> list[Figure]:
    train_to = int(days * 0.6)
    cut = train_to + 8
    known, test = world.dataset(FIRST_DAY, train_to, cut_day=cut), world.dataset(cut, days, cut_day=days + 60)
    scenario = world.scenario(test)
    is_fraud = np.array([one is not None for one in scenario], np.bool_)
    kinds = sorted({one for one in scenario if one is not None})
    figures: list[Figure] = []
    without: dict[str, float] = {}
    for rung in RUNGS_ASKED:
        recalls, precisions = [], []
        for seed in range(seeds):
            settings = TrainingSettings(device="cpu", seed=seed)
            span = train_to - FIRST_DAY
            validation = world.start_ms + int((train_to - span * settings.validation_share) * DAY_MS)
            shop = Workshop(spec=world.spec, known=known, validation_from_ms=validation, settings=settings)
            score = RUNGS[rung](shop)(test.tuples)
            found = alerts(test, score, per_day)
            recalls.append([float(found[scenario == kind].mean()) for kind in kinds])
            precisions.append(average_precision(is_fraud, score))
        for kind, values in zip(kinds, np.array(recalls).T, strict=True):
            mean = float(values.mean())
            without.setdefault(kind, mean)
            figures.append(
                Figure(
                    name=f"{kind}, recall at {per_day} alerts a day: {rung}",
                    value=mean,
                    unit="",
                    better="higher",
                    peer="trees without graph features",
                    peer_value=without[kind],
                    conditions=f"{int((scenario == kind).sum())} payments; seeds {values.round(3).tolist()}",
                )
            )
        ap = " ".join(f"{value:.4f}" for value in precisions)
        note(f"{rung}: AP {ap}; recall " + ", ".join(f"{k} {v:.2f}" for k, v in zip(kinds, recalls[0], strict=True)))
        figures.append(
            Figure(name=f"AP: {rung}", value=float(np.mean(precisions)), unit="", better="higher", conditions=ap)
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=6_000)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--alerts", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    with TemporaryDirectory() as home:
        world = World(Path(home), accounts=arguments.accounts, days=arguments.days, seed=arguments.seed)
        publish("quality-rings", measure(world, days=arguments.days, per_day=arguments.alerts, seeds=arguments.seeds))


if __name__ == "__main__":
    main()
