"""Scores accounts instead of payments, for data whose labels name accounts (laundering rings): the same parts, K folds.

Random folds flatter a model, because ring members of one fold help to find those of another; they are what published
figures use, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from graph_features.clock import to_ms
from graph_features.errors import InvalidInputError, ModelError
from graph_features.input_spec import InputSpec
from graph_features.settings import PlatformSettings, TrainingSettings, load
from graph_features.stores.blocks import RowBlock
from graph_features.tuples import AccountInputs, build_account_inputs
from training.account_trees import AccountGraph, AccountTrees, stratified
from training.dataset import ROW
from training.fit import fit_network, logits
from training.history import current_spec, open_history
from training.metrics import average_precision, roc_auc
from training.model import NeighbourConv, Network, Scaler, encoder
from training.progress import Progress, no_progress
from training.scaling import ColumnScaling
from training.tabular import Columns
from training.trees import TreeSettings

if TYPE_CHECKING:
    import feast

Int64 = npt.NDArray[np.int64]

AccountModel = Literal["trees", "network"]

ACCOUNT_SERVICE = "account_features"
INNER_FOLDS = 5
"""A fifth of each fold's training accounts decides when to stop."""


@dataclass(frozen=True, kw_only=True)
class AccountRows:
    """AccountInputs that batches can be taken of."""

    inputs: AccountInputs

    def __len__(self) -> int:
        return len(self.inputs.account_x)

    def feeds(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "account_x": self.inputs.account_x,
            "neighbour_x": self.inputs.neighbour_x,
            "neighbour_index": self.inputs.neighbour_index,
        }

    @cached_property
    def _first_edge(self) -> npt.NDArray[np.int64]:
        return np.searchsorted(self.inputs.neighbour_index, np.arange(len(self) + 1))

    def take(self, rows: npt.NDArray[np.int64]) -> AccountRows:
        """Return the accounts at positions `rows`, in that order, with their edges."""
        first, count = self._first_edge[rows], self._first_edge[rows + 1] - self._first_edge[rows]
        edges = np.arange(int(count.sum())) + np.repeat(first - (np.cumsum(count) - count), count)
        return AccountRows(
            inputs=AccountInputs(
                account_x=self.inputs.account_x[rows],
                neighbour_x=self.inputs.neighbour_x[edges],
                neighbour_index=np.repeat(np.arange(len(rows)), count),
            )
        )


class AccountGnn(Network):
    """An account and its neighbourhood to one logit: the encoder and the convolution of FraudGnn, centre only."""

    def __init__(self, rows: AccountRows, settings: TrainingSettings, neighbours: int) -> None:
        super().__init__()
        account = ColumnScaling.measure(rows.inputs.account_x)
        neighbour = ColumnScaling.measure(rows.inputs.neighbour_x, with_log=False)
        self.account_scaler = Scaler(len(account.mean), len(account.null_columns))
        self.neighbour_scaler = Scaler(len(neighbour.mean), len(neighbour.null_columns), with_log=False)
        self.account_scaler.load(account)
        self.neighbour_scaler.load(neighbour)
        hidden = settings.hidden
        self.account = encoder(len(account.mean) + len(account.null_columns), hidden, settings.dropout)
        self.neighbours = NeighbourConv(
            in_features=len(neighbour.mean) + len(neighbour.null_columns),
            hidden=hidden,
            heads=settings.heads,
            slots=neighbours,
        )
        self.head = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Dropout(settings.dropout), nn.Linear(hidden, 1)
        )

    def logit(self, *inputs: Tensor) -> Tensor:
        account_x, neighbour_x, neighbour_index = inputs
        centre = self.account(self.account_scaler(account_x))
        around = self.neighbours(self.neighbour_scaler(neighbour_x), centre, neighbour_index)
        out: Tensor = self.head(torch.cat([centre, around], dim=1)).squeeze(1)
        return out


@dataclass(frozen=True, kw_only=True)
class AccountReport:
    """Out-of-fold scores of every labelled account, and how good they are, per fold and over all accounts.

    `score` is float64 [accounts], the logit of the fold that did not see the account, in the order of `account_id`.
    """

    account_id: npt.NDArray[np.object_]
    is_fraud: npt.NDArray[np.bool_]
    score: npt.NDArray[np.float64]
    fold_roc_auc: tuple[float, ...]
    fold_average_precision: tuple[float, ...]
    roc_auc: float
    average_precision: float

    def figures(self) -> dict[str, float]:
        """All figures by name, folds numbered from 1."""
        found = {"roc_auc": self.roc_auc, "average_precision": self.average_precision}
        for name, values in (("roc_auc", self.fold_roc_auc), ("average_precision", self.fold_average_precision)):
            found |= {f"{name}_fold_{number}": value for number, value in enumerate(values, start=1)}
        return found

    def write_scores(self, path: Path) -> None:
        """Write account_id, is_fraud and fraud_score (a logit) to a Parquet file."""
        columns = {"account_id": self.account_id, "is_fraud": self.is_fraud, "fraud_score": self.score}
        pq.write_table(pa.table(columns), path)


def read_account_labels(path: Path, *, id_column: str, label_column: str, prefix: str = "") -> pa.Table:
    """Read account_id (string, `prefix` before it) and is_fraud (bool) from Parquet or CSV; raise InvalidInputError."""
    table = pa_csv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)
    for column in (id_column, label_column):
        if column not in table.column_names:
            names = ", ".join(table.column_names)
            raise InvalidInputError(field=str(path), expected=f"one of its columns ({names})", got=column)
    ids = pc.binary_join_element_wise(prefix, table[id_column].cast(pa.string()), "")
    is_fraud = table[label_column].cast(pa.bool_())
    if is_fraud.null_count or ids.null_count:
        raise InvalidInputError(field=str(path), expected="an id and a label in every row", got="empty cells")
    return pa.table({"account_id": ids, "is_fraud": is_fraud})


def score_accounts(
    platform: PlatformSettings,
    labels: pa.Table,
    *,
    as_of: datetime,
    folds: int = 5,
    seed: int | None = None,
    model: AccountModel = "trees",
    settings: TrainingSettings | None = None,
    progress: Progress = no_progress,
) -> AccountReport:
    """Score the accounts of `labels` (account_id: string, is_fraud: bool) by features as of `as_of`.

    Every account is scored by a model that was trained on the other folds: trees over features and graph, or the
    network. Features come through Feast, so the slice views need a slice near `as_of`. Raises ModelError when a fold
    would hold no fraudulent account.
    """
    settings = settings or load(TrainingSettings)
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    labels = labels.sort_by("account_id").combine_chunks()
    spec = current_spec(settings)
    account_id = labels["account_id"].to_numpy()
    with open_history(platform, settings) as history:
        rows = read_accounts(history.store, spec, account_id, to_ms(as_of))
        if model == "network":
            return cross_validate(
                rows, labels, folds=folds, neighbours=spec.neighbours, settings=settings, progress=progress
            )
        payments = history.records.read_all(before_ms=to_ms(as_of)).transactions
    return cross_validate_trees(
        account_columns(spec, rows.inputs),
        AccountGraph.of(account_id, payments),
        labels,
        folds=folds,
        trees=TreeSettings(),
        seed=settings.seed,
        progress=progress,
    )


def read_accounts(
    store: feast.FeatureStore, spec: InputSpec, account_id: npt.NDArray[np.object_], as_of_ms: int
) -> AccountRows:
    """Return the inputs of accounts at one instant, through Feast's point-in-time join."""
    moment = pd.Timestamp(as_of_ms, unit="ms", tz="UTC")
    entities = pd.DataFrame({"account_id": account_id, "event_timestamp": moment, ROW: np.arange(len(account_id))})
    service = store.get_feature_service(ACCOUNT_SERVICE)
    job = store.get_historical_features(entity_df=entities, features=service, full_feature_names=True)
    joined = job.to_arrow().sort_by(ROW)
    blocks = {view.name: RowBlock.from_arrow(view, joined, prefix=f"{view.name}__") for view in spec.account_views}
    if not any(block.present.any() for block in blocks.values()):
        raise ModelError(
            f"none of the {len(account_id)} labelled accounts (first: {account_id[0]!r}) has a feature row by then: "
            "check the ids and their prefix, and that features were backfilled"
        )
    nobody = np.full(len(account_id), None, dtype=object)
    instants = np.full(len(account_id), as_of_ms, np.int64)
    return AccountRows(inputs=build_account_inputs(spec, instants, nobody, blocks))


def cross_validate(
    rows: AccountRows,
    labels: pa.Table,
    *,
    folds: int,
    neighbours: int,
    settings: TrainingSettings,
    progress: Progress = no_progress,
) -> AccountReport:
    """Train a network per fold, and score each account by the one that has not seen it."""

    def score(is_fraud: npt.NDArray[np.bool_], train: Int64, held_out: Int64) -> npt.NDArray[np.float64]:
        model = _fit_on(rows, is_fraud, train, neighbours, settings)
        return logits(model, rows.take(held_out))

    return _out_of_fold(score, labels, folds=folds, seed=settings.seed, progress=progress)


def cross_validate_trees(
    own: Columns,
    graph: AccountGraph,
    labels: pa.Table,
    *,
    folds: int,
    trees: TreeSettings,
    seed: int,
    progress: Progress = no_progress,
) -> AccountReport:
    """The same with trees over the accounts' own columns and the graph of their payments; see `account_trees`."""
    model = AccountTrees(own=own, graph=graph, settings=trees, seed=seed)
    return _out_of_fold(model.scores, labels, folds=folds, seed=seed, progress=progress)


def _out_of_fold(
    score_of: Callable[[npt.NDArray[np.bool_], Int64, Int64], npt.NDArray[np.float64]],
    labels: pa.Table,
    *,
    folds: int,
    seed: int,
    progress: Progress,
) -> AccountReport:
    """Call score_of(is_fraud, train, held_out) per fold, stratified and seeded, and put the scores together."""
    is_fraud = labels["is_fraud"].to_numpy()
    if is_fraud.sum() < 2 * folds:
        raise ModelError(f"{folds} folds need at least {2 * folds} fraudulent accounts, got {int(is_fraud.sum())}")
    fold = stratified(is_fraud, folds, seed)
    score = np.empty(len(is_fraud), np.float64)
    parts = [np.flatnonzero(fold == number) for number in range(folds)]
    for number, held_out in enumerate(parts):
        progress(float(number), float(folds), f"fold {number + 1}")
        score[held_out] = score_of(is_fraud, np.flatnonzero(fold != number), held_out)
    return AccountReport(
        account_id=labels["account_id"].to_numpy(),
        is_fraud=is_fraud,
        score=score,
        fold_roc_auc=tuple(roc_auc(is_fraud[part], score[part]) for part in parts),
        fold_average_precision=tuple(average_precision(is_fraud[part], score[part]) for part in parts),
        roc_auc=roc_auc(is_fraud, score),
        average_precision=average_precision(is_fraud, score),
    )


def _fit_on(
    rows: AccountRows, is_fraud: npt.NDArray[np.bool_], train: Int64, neighbours: int, settings: TrainingSettings
) -> AccountGnn:
    """Train on the accounts at `train`; a share of them decides when to stop."""
    stop_on = stratified(is_fraud[train], INNER_FOLDS, settings.seed + 1) == 0
    fit, stop = train[~stop_on], train[stop_on]
    fit_rows = rows.take(fit)

    def build() -> AccountGnn:
        return AccountGnn(fit_rows, settings, neighbours)

    return fit_network(build, (fit_rows, is_fraud[fit]), (rows.take(stop), is_fraud[stop]), settings).model


def account_columns(spec: InputSpec, inputs: AccountInputs) -> Columns:
    """An account's own features, and the mean of each neighbour column over its edges, as columns for trees."""
    accounts, width = inputs.account_x.shape[0], len(spec.neighbour_names)
    count = np.bincount(inputs.neighbour_index, minlength=accounts)
    total = np.zeros((accounts, width))
    np.add.at(total, inputs.neighbour_index, inputs.neighbour_x)
    mean = np.divide(total, count[:, None], out=np.full((accounts, width), np.nan), where=count[:, None] > 0)
    own = Columns(names=spec.account, x=inputs.account_x)
    return own.beside(tuple(f"{name}_mean" for name in spec.neighbour_names), mean.astype(np.float32))
