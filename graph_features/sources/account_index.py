"""Which rows of a file of records concern an account, and the columns that features read of them, as numbers.

Such an index lies beside each part of the records cache, mapped. It is one Arrow row of lists:

- `account_ids`, sorted; `channels` and `countries`, the words that codes stand for;
- per kind `offsets` and `positions`: the rows of account a are `positions[offsets[a]:offsets[a + 1]]`, one to oneself
  once; `sender` and `receiver`, the accounts of each row;
- of transactions also `channel`, `sender_country`, `receiver_country` (-1 is null); of statuses and labels their
  `value`, as in `edges.Changes`;
- per side a ledger: `offsets`, `ts_ms` and `running` (one longer), the account's payments in order of time and the sum
  of the amounts before each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.edges import Int32, Int64, label_codes, status_codes, vocabulary, word_codes
from graph_features.sources.records import LABELS, STATUSES, TRANSACTIONS

KINDS: Final = (TRANSACTIONS.name, STATUSES.name, LABELS.name)
PARTIES: Final = ("sender", "receiver")
"""Whose columns are `sender_id` and `receiver_id`; the sides of the ledgers, of payments sent and received."""

WORDS: Final = {"channel": "channels", "sender_country": "countries", "receiver_country": "countries"}
"""Coded columns of transactions, and the list of words that each is coded by."""


def index_of(tables: Mapping[str, pa.Table]) -> pa.Table:
    """Return the index of tables with the columns of `cache.WITH_PAYMENT`."""
    chunks = [chunk for name in KINDS for party in PARTIES for chunk in tables[name][f"{party}_id"].chunks]
    ids = pc.unique(pa.chunked_array(chunks, pa.string()))
    ids = ids.take(pc.sort_indices(ids))
    payments = tables[TRANSACTIONS.name]
    lists: dict[str, Any] = {"account_ids": ids}
    for words in dict.fromkeys(WORDS.values()):
        lists[words] = vocabulary(*(payments[name] for name, listed in WORDS.items() if listed == words))
    lists |= {f"{TRANSACTIONS.name}_{name}": word_codes(payments[name], lists[words]) for name, words in WORDS.items()}
    for name in KINDS:
        codes = {party: word_codes(tables[name][f"{party}_id"], ids) for party in PARTIES}
        lists |= {f"{name}_{party}": code for party, code in codes.items()}
        lists[f"{name}_offsets"], lists[f"{name}_positions"] = _grouped(codes, len(ids))
    lists[f"{STATUSES.name}_value"] = status_codes(tables[STATUSES.name])
    lists[f"{LABELS.name}_value"] = label_codes(tables[LABELS.name])
    ts_ms, amount = payments["event_timestamp"].cast(pa.int64()).to_numpy(), payments["amount_base"].to_numpy()
    for party in PARTIES:
        account = lists[f"{TRANSACTIONS.name}_{party}"]
        order = np.lexsort((ts_ms, account))
        lists[f"{party}_offsets"] = _offsets(account, len(ids))
        lists[f"{party}_ts_ms"] = ts_ms[order]
        lists[f"{party}_running"] = np.concatenate(([0], np.cumsum(amount[order])))
        lists[f"{party}_sums"] = np.bincount(account, amount.astype(np.float64), len(ids))
    return pa.table({name: _one_row(values) for name, values in lists.items()})


def _one_row(values: Any) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), pa.array(values))


def _offsets(codes: Int32, n_accounts: int) -> Int64:
    offsets = np.zeros(n_accounts + 1, np.int64)
    np.cumsum(np.bincount(codes, minlength=n_accounts), out=offsets[1:])
    return offsets


def _grouped(codes: Mapping[str, Int32], n_accounts: int) -> tuple[Int64, Int64]:
    sender, receiver = codes.values()
    apart = np.flatnonzero(sender != receiver)
    code = np.concatenate((sender, receiver[apart]))
    position = np.concatenate((np.arange(len(sender)), apart))
    return _offsets(code, n_accounts), position[np.argsort(code, kind="stable")].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class AccountIndex:
    """An index as `index_of` made it, mapped or not; its lists by name, but for those of words."""

    table: pa.Table

    def words(self, name: str) -> pa.StringArray:
        """Return one of the lists of words."""
        return self.table[name].chunk(0).values

    @cached_property
    def numbers(self) -> Mapping[str, npt.NDArray[Any]]:
        """Return every other list."""
        lists = {name: self.words(name) for name in self.table.column_names}
        return {name: values.to_numpy() for name, values in lists.items() if not pa.types.is_string(values.type)}

    @cached_property
    def account_ids(self) -> pa.StringArray:
        return self.words("account_ids")

    def find(self, account_ids: Sequence[str]) -> Int64:
        """Return where each of these accounts stands among the index's, -1 where it is not there."""
        if len(account_ids) * 64 > len(self.account_ids):
            # So many are looked up faster in a hash table of all.
            return word_codes(pa.chunked_array([pa.array(account_ids, pa.string())]), self.account_ids).astype(np.int64)
        return np.array([self._find(account_id) for account_id in account_ids], np.int64)

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

    def rows(self, kind: str, places: Int64) -> Int64:
        """Return the positions of the rows of one kind that concern accounts at these places, each once, ascending."""
        offsets, positions = self.numbers[f"{kind}_offsets"], self.numbers[f"{kind}_positions"]
        places = places[places >= 0]
        runs = [positions[first:end] for first, end in zip(offsets[places], offsets[places + 1], strict=True)]
        chosen = np.concatenate((np.empty(0, np.int64), *runs))
        if len(places) == 1:
            return np.sort(chosen)
        if len(chosen) * 16 < len(self.numbers[f"{kind}_sender"]):
            return np.unique(chosen)
        marked = np.zeros(len(self.numbers[f"{kind}_sender"]), np.bool_)
        marked[chosen] = True
        return np.flatnonzero(marked)
