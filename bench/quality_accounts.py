"""Laundering rings: account-level scores on the samples of IBM AMLSim.

    python -m bench.quality_accounts --data FOLDER [--only cycle fanin] [--seeds 3] [--network]

FOLDER holds amlsim/20K_{cycle,fanin}200_{transactions,nodes}.parquet. Random folds are what others publish; they
flatter every model, because members of one ring lie in several folds and give each other away. The figure by time is
the honest one: trained on the accounts that were seen in the first half of the period, as they were then, it scores
those that came later, as they are at the end, and knows none of their labels.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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
from graph_features.tuples import AccountInputs
from training.account_trees import AccountGraph, AccountTrees
from training.accounts import AccountRows, account_columns, cross_validate, cross_validate_trees, read_account_labels
from training.metrics import average_precision, roc_auc
from training.point_in_time import accounts_at
from training.trees import TreeSettings

MAPPING = Path(__file__).parents[1] / "docs" / "mappings" / "amlsim.yaml"
PEERS = {"cycle": (0.885, 0.728), "fanin": (0.889, 0.754)}
"""AUC and AP of an untuned XGBoost on degree and amount statistics, random five folds."""
GOAL = 0.90


class Sample:
    """One sample through ingest, record store and catalogue."""

    def __init__(self, folder: Path, kind: str, home: Path) -> None:
        self._stem, self._home = folder / f"20K_{kind}200", home
        self.settings = FeatureSettings()
        self.spec = InputSpec.derive(
            [view for view in (*catalog().event_views(), *catalog().slice_views()) if view.entity == "account"],
            feature_hash="",
            profile=NEIGHBOUR_PROFILE,
            neighbours=16,
        )

    @cached_property
    def payments(self) -> pa.Table:
        store = SqliteRecords(self._home / f"{self._stem.name}.sqlite")
        ingest_file(
            self._stem.with_name(f"{self._stem.name}_transactions.parquet"),
            kind="transactions",
            mapping=load_mapping(MAPPING),
            records=store,
            settings=IngestSettings(base_currency="EUR"),
            mark_pending=None,
            rejects_path=self._home / "rejects.csv",
        )
        return store.read_all().transactions

    @cached_property
    def labels(self) -> pa.Table:
        """Accounts with a payment, by id; those without have nothing to be judged by."""
        path = self._stem.with_name(f"{self._stem.name}_nodes.parquet")
        labels = read_account_labels(path, id_column="nodeid", label_column="isFraud", prefix="a")
        seen = pa.concat_tables(
            [self.payments.select([name]).rename_columns(["id"]) for name in ("sender_id", "receiver_id")]
        )
        kept = pc.is_in(labels["account_id"], value_set=pc.unique(seen["id"]))
        return labels.filter(kept).sort_by("account_id").combine_chunks()

    @property
    def account_id(self) -> npt.NDArray[np.object_]:
        return np.asarray(self.labels["account_id"].to_numpy(), object)

    @cached_property
    def event_ms(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.payments["event_timestamp"].cast(pa.int64()).to_numpy(), np.int64)

    def before(self, as_of_ms: int) -> pa.Table:
        return self.payments.filter(pa.array(self.event_ms < as_of_ms))

    def inputs(self, as_of_ms: int) -> AccountInputs:
        """Features of every account as of an instant, from the payments before it."""
        note(f"  features as of {np.datetime64(as_of_ms, 'ms').astype('datetime64[D]')}")
        edges = EdgeTable.from_arrow(self.before(as_of_ms))
        return accounts_at(self.spec, edges, self.account_id, as_of_ms=as_of_ms, settings=self.settings)

    @cached_property
    def end_ms(self) -> int:
        return int(self.event_ms.max()) // DAY_MS * DAY_MS + DAY_MS

    @cached_property
    def at_end(self) -> AccountInputs:
        return self.inputs(self.end_ms)

    @cached_property
    def first_seen_ms(self) -> npt.NDArray[np.int64]:
        """When each account first paid or was paid."""
        codes = {account: code for code, account in enumerate(self.account_id)}
        first = np.full(len(codes), np.iinfo(np.int64).max)
        for name in ("sender_id", "receiver_id"):
            at = np.array([codes[account] for account in self.payments[name].to_pylist()])
            np.minimum.at(first, at, self.event_ms)
        return first


def random_folds(sample: Sample, kind: str, seeds: int, trees: TreeSettings, network: bool) -> list[Figure]:
    own = account_columns(sample.spec, sample.at_end)
    graph = AccountGraph.of(sample.account_id, sample.payments)
    reports = {
        "trees and graph": [
            cross_validate_trees(own, graph, sample.labels, folds=5, trees=trees, seed=seed) for seed in range(seeds)
        ]
    }
    if network:
        rows, settings = AccountRows(inputs=sample.at_end), TrainingSettings(device="cpu")
        reports["network"] = [cross_validate(rows, sample.labels, folds=5, neighbours=16, settings=settings)]
    figures = []
    for name, found in reports.items():
        for at, metric in enumerate(("roc_auc", "average_precision")):
            values = [getattr(report, metric) for report in found]
            figures.append(
                Figure(
                    name=f"{kind}, {name}, random folds: {metric}",
                    value=float(np.mean(values)),
                    unit="",
                    better="higher",
                    peer="XGBoost, degrees and amounts",
                    peer_value=PEERS[kind][at],
                    goal=GOAL if metric == "average_precision" and name != "network" else None,
                    conditions="seeds " + " ".join(f"{value:.4f}" for value in values),
                )
            )
            note(f"{figures[-1].name} {figures[-1].conditions}")
    return figures


def by_time(sample: Sample, kind: str, seeds: int, trees: TreeSettings) -> list[Figure]:
    """Trained in the middle of the period on the accounts seen by then; the later ones scored at the end."""
    middle_ms = int(np.median(sample.event_ms)) // DAY_MS * DAY_MS
    early = np.flatnonzero(sample.first_seen_ms < middle_ms)
    late = np.flatnonzero(sample.first_seen_ms >= middle_ms)
    is_fraud = sample.labels["is_fraud"].to_numpy()
    note(f"  {len(early):,} accounts and {is_fraud[early].sum()} frauds, then {len(late):,} and {is_fraud[late].sum()}")
    then, now = sample.inputs(middle_ms), sample.at_end
    rounds = [
        (account_columns(sample.spec, then), AccountGraph.of(sample.account_id, sample.before(middle_ms))),
        (account_columns(sample.spec, now), AccountGraph.of(sample.account_id, sample.payments)),
    ]
    found = []
    for seed in range(seeds):
        model = AccountTrees(own=rounds[0][0], graph=rounds[0][1], settings=trees, seed=seed)
        fitted = model.fitted(is_fraud, early)
        score = fitted.scores(*rounds[1], is_fraud, early, late)
        found.append((roc_auc(is_fraud[late], score), average_precision(is_fraud[late], score)))
    base = float(is_fraud[late].mean())
    return [
        Figure(
            name=f"{kind}, trees and graph, by time: {metric}",
            value=float(np.mean([one[at] for one in found])),
            unit="",
            better="higher",
            conditions=f"base rate {base:.3f}; seeds " + " ".join(f"{one[at]:.4f}" for one in found),
        )
        for at, metric in enumerate(("roc_auc", "average_precision"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with amlsim/")
    parser.add_argument("--only", nargs="+", choices=tuple(PEERS), default=list(PEERS), metavar="SAMPLE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--network", action="store_true", help="the network's figures as well; takes minutes")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.data / "amlsim"
    if not folder.is_dir():
        sys.exit(f"{folder} is not there: --data names the folder that holds it")
    trees = replace(TreeSettings(), threads=arguments.threads)
    figures: list[Figure] = []
    with TemporaryDirectory() as home:
        for kind in arguments.only:
            note(kind)
            sample = Sample(folder, kind, Path(home))
            figures += random_folds(sample, kind, arguments.seeds, trees, arguments.network)
            figures += by_time(sample, kind, arguments.seeds, trees)
    publish("quality-accounts", figures)


if __name__ == "__main__":
    main()
