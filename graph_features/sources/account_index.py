"""Which rows of a file of records concern an account: beside each part of the records cache, mapped and searched.

The index is one Arrow row of lists: `account_ids`, sorted, and per kind `offsets` and `positions`. The rows of account
a are `positions[offsets[a]:offsets[a + 1]]`; one to oneself is there once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.sources.records import LABELS, STATUSES, TRANSACTIONS

Int64 = npt.NDArray[np.int64]

KINDS: Final = (TRANSACTIONS.name, STATUSES.name, LABELS.name)
PARTIES: Final = ("sender_id", "receiver_id")


def index_of(tables: Mapping[str, pa.Table]) -> pa.Table:
    """Return the index of tables that all have the columns of PARTIES."""
    chunks = [chunk for name in KINDS for party in PARTIES for chunk in tables[name][party].chunks]
    ids = pc.unique(pa.chunked_array(chunks, pa.string()))
    ids = ids.take(pc.sort_indices(ids))
    columns = {"account_ids": _one_row(ids)}
    for name in KINDS:
        sender, receiver = (pc.index_in(tables[name][party], value_set=ids).to_numpy() for party in PARTIES)
        offsets, positions = _grouped(sender, receiver, len(ids))
        columns[f"{name}_offsets"] = _one_row(pa.array(offsets))
        columns[f"{name}_positions"] = _one_row(pa.array(positions))
    return pa.table(columns)


def _one_row(values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _grouped(sender: npt.NDArray[np.int32], receiver: npt.NDArray[np.int32], n_accounts: int) -> tuple[Int64, Int64]:
    apart = np.flatnonzero(sender != receiver)
    code = np.concatenate((sender, receiver[apart]))
    position = np.concatenate((np.arange(len(sender)), apart))
    offsets = np.zeros(n_accounts + 1, np.int64)
    np.cumsum(np.bincount(code, minlength=n_accounts), out=offsets[1:])
    return offsets, position[np.argsort(code, kind="stable")].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class AccountIndex:
    """An index as `index_of` made it, mapped or not."""

    account_ids: pa.StringArray
    offsets: Mapping[str, Int64]
    positions: Mapping[str, Int64]

    @classmethod
    def of(cls, table: pa.Table) -> AccountIndex:
        def column(name: str) -> pa.Array:
            return table[name].chunk(0).values

        return cls(
            account_ids=column("account_ids"),
            offsets={name: column(f"{name}_offsets").to_numpy() for name in KINDS},
            positions={name: column(f"{name}_positions").to_numpy() for name in KINDS},
        )

    def find(self, account_ids: Sequence[str]) -> Int64:
        """Return where these accounts stand among the index's, those that it lacks left out."""
        found = [self._find(account_id) for account_id in account_ids]
        return np.array([place for place in found if place >= 0], np.int64)

    def _find(self, account_id: str) -> int:
        # Arrow sorts bytes of UTF-8, whose order is that of Python's strings.
        ids, low, high = self.account_ids, 0, len(self.account_ids)
        while low < high:
            middle = (low + high) // 2
            if ids[middle].as_py() < account_id:
                low = middle + 1
            else:
                high = middle
        return low if low < len(ids) and ids[low].as_py() == account_id else -1

    def rows(self, kind: str, accounts: Int64) -> Int64:
        """Return the positions of the rows of one kind that concern accounts at these places, each once, ascending."""
        offsets, positions = self.offsets[kind], self.positions[kind]
        runs = [positions[offsets[place] : offsets[place + 1]] for place in accounts.tolist()]
        return np.unique(np.concatenate((np.empty(0, np.int64), *runs)))
