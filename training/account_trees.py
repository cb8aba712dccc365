"""Trees over accounts and the graph that their payments make: for labels that name accounts, like laundering rings.

Two rounds, as in collective classification. The first sees each account by itself: its features, its neighbours' means,
how its partners hang together. The second also sees what the first made of its partners, and the labels of those that
are in the training folds; never the account's own.
Source: Sen et al. 2008, Collective Classification in Network Data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from training.calibrate import sigmoid
from training.tabular import Columns
from training.trees import Trees, TreeSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from scipy.sparse import csc_matrix, csr_matrix

Bools = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

INNER_FOLDS: Final = 4
"""Training accounts are scored in the first round by models that have not seen them, in so many folds."""

STRUCTURE: Final = (
    *("partners_out", "partners_in", "partners", "partners_both_ways", "triangles", "most_common_partners"),
    *("partners_rarity", "triangles_rarity"),
)
SPREAD: Final = ("paid", "paid_by", "partners", "partners_by_rarity", "both_ways", "triangles", "triangles_by_rarity")


@dataclass(frozen=True, kw_only=True)
class AccountGraph:
    """Which of n accounts paid which, each pair once, without payments to oneself: a sparse 0/1 matrix [n, n]."""

    paid: csr_matrix[Any]

    @classmethod
    def of(cls, account_id: npt.NDArray[np.object_], transactions: pa.Table) -> AccountGraph:
        """Build from stored payments; those with an account that is not among `account_id` are left out."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from scipy.sparse import coo_matrix

        known = pa.array(account_id, pa.string())
        ends = [
            pc.fill_null(pc.index_in(transactions[name], value_set=known), -1).to_numpy().astype(np.int64)
            for name in ("sender_id", "receiver_id")
        ]
        kept = (ends[0] >= 0) & (ends[1] >= 0) & (ends[0] != ends[1])
        pairs = np.unique(np.stack(ends)[:, kept], axis=1)
        shape = (len(account_id), len(account_id))
        return cls(paid=coo_matrix((np.ones(pairs.shape[1]), tuple(pairs)), shape).tocsr())

    @cached_property
    def partners(self) -> csr_matrix[Any]:
        """1 where either paid the other."""
        found: csr_matrix[Any] = self.paid.maximum(self.paid.T).tocsr()
        return found

    @cached_property
    def both_ways(self) -> csr_matrix[Any]:
        """1 where each paid the other."""
        found: csr_matrix[Any] = self.paid.multiply(self.paid.T).tocsr()
        return found

    @cached_property
    def common(self) -> csr_matrix[Any]:
        """For partners, how many partners they have in common."""
        found: csr_matrix[Any] = (self.partners @ self.partners).multiply(self.partners).tocsr()
        return found

    @cached_property
    def rarity(self) -> Float64:
        """1 / number of partners: to be linked with a hub says little."""
        return np.asarray(1.0 / np.maximum(_sums(self.partners), 1.0))

    @cached_property
    def structure(self) -> Columns:
        """How an account's partners hang together, float32 [n, STRUCTURE]."""
        most = np.asarray(self.common.max(axis=1).todense(), np.float64).ravel()
        found = (
            *(_sums(self.paid), _sums(self.paid.T), _sums(self.partners), _sums(self.both_ways)),
            *(_sums(self.common) / 2, most, self.partners @ self.rarity, self.common @ self.rarity),
        )
        return Columns(names=STRUCTURE, x=np.stack(found, axis=1).astype(np.float32))

    def spread(self, name: str, value: Float64) -> Columns:
        """What the partners' values, float64 [n], add up to, float32 [n, SPREAD]; an account's own does not come in."""
        rare = value * self.rarity
        found = (
            *(self.paid @ value, self.paid.T @ value, self.partners @ value, self.partners @ rare),
            *(self.both_ways @ value, self.common @ value, self.common @ rare),
        )
        return Columns(names=tuple(f"{name}_{one}" for one in SPREAD), x=np.stack(found, axis=1).astype(np.float32))


def _sums(matrix: csr_matrix[Any] | csc_matrix[Any]) -> Float64:
    return np.asarray(matrix.sum(axis=1), np.float64).ravel()


@dataclass(frozen=True, kw_only=True)
class FittedAccounts:
    """The models of both rounds. `inner` are first-round models beside the training accounts that they had not seen."""

    first: Trees
    inner: tuple[tuple[Trees, Int64], ...]
    second: Trees

    def scores(self, own: Columns, graph: AccountGraph, is_fraud: Bools, known: Int64, asked: Int64) -> Float64:
        """Return log odds of the accounts at `asked`, who may know their partners' labels at `known`.

        `own` and `graph` may be of a later instant than those that the models were fitted on.
        """
        first = own.beside(graph.structure.names, graph.structure.x)
        guess = _guess(self.first, self.inner, first)
        return self.second.logit(_rows(_second_table(first, graph, guess, is_fraud, known), asked))


@dataclass(frozen=True, kw_only=True)
class AccountTrees:
    """Both rounds, over accounts described by `own` columns and linked by `graph`."""

    own: Columns
    graph: AccountGraph
    settings: TreeSettings
    seed: int

    def scores(self, is_fraud: Bools, train: Int64, asked: Int64) -> Float64:
        """Return log odds of the accounts at `asked`, from the labels of those at `train` alone."""
        return self.fitted(is_fraud, train).scores(self.own, self.graph, is_fraud, train, asked)

    def fitted(self, is_fraud: Bools, train: Int64) -> FittedAccounts:
        """Fit both rounds on the accounts at `train`; the second sees of the first what it had not learned by heart."""
        table = self.own.beside(self.graph.structure.names, self.graph.structure.x)
        first = self._fit(table, is_fraud, train)
        fold = stratified(is_fraud[train], INNER_FOLDS, self.seed + 1)
        inner = tuple(
            (self._fit(table, is_fraud, train[fold != number]), train[fold == number]) for number in range(INNER_FOLDS)
        )
        guess = _guess(first, inner, table)
        second = self._fit(_second_table(table, self.graph, guess, is_fraud, train), is_fraud, train)
        return FittedAccounts(first=first, inner=inner, second=second)

    def _fit(self, table: Columns, is_fraud: Bools, rows: Int64) -> Trees:
        return Trees.fit(_rows(table, rows), is_fraud[rows], self.settings, seed=self.seed)


def _guess(first: Trees, inner: tuple[tuple[Trees, Int64], ...], table: Columns) -> Float64:
    """Probability of every account by a first-round model that has not seen its label."""
    guess = sigmoid(first.logit(table))
    for model, held_out in inner:
        guess[held_out] = sigmoid(model.logit(_rows(table, held_out)))
    return guess


def _second_table(table: Columns, graph: AccountGraph, guess: Float64, is_fraud: Bools, known: Int64) -> Columns:
    """Add the first round's guess, and what it and the known labels say of the partners."""
    labels = guess.copy()
    labels[known] = is_fraud[known]
    table = table.beside(("guess",), guess[:, None].astype(np.float32))
    for name, value in (("guess", guess), ("known", labels)):
        spread = graph.spread(name, value)
        table = table.beside(spread.names, spread.x)
    return table


def _rows(table: Columns, rows: Int64) -> Columns:
    return Columns(names=table.names, x=table.x[rows])


def stratified(is_fraud: Bools, folds: int, seed: int) -> Int64:
    """A fold number per row, frauds and genuine rows each spread evenly."""
    generator = np.random.default_rng(seed)
    fold = np.empty(len(is_fraud), np.int64)
    for group in (np.flatnonzero(is_fraud), np.flatnonzero(~is_fraud)):
        fold[generator.permutation(group)] = np.arange(len(group)) % folds
    return fold
