"""What neighbour rows tell of counterparties: off the counterparties' own rows, else from their payments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.catalog import catalog
from graph_features.clock import CREATED_EPOCH_US, NEVER_MS
from graph_features.edges import EdgeTable, Int64
from graph_features.neighbours import last_payments
from graph_features.sources.base import Records, RecordStore
from graph_features.standings import (
    HUB_PAYMENTS,
    RECEIVED_COUNT,
    SENT_COUNT,
    STANDING,
    STANDING_VIEWS,
    RowStandings,
)
from graph_features.stores.base import OnlineStore
from graph_features.stores.blocks import RowBlock


@dataclass(frozen=True, kw_only=True)
class Counterparties:
    """Accounts that neighbour rows describe, and the earliest instant at which one describes each."""

    account_ids: Sequence[str]
    described_ms: Int64

    @classmethod
    def of(cls, edges: EdgeTable, account: Int64, as_of_ms: Int64, *, besides: Iterable[str]) -> Counterparties:
        """Return the accounts in the neighbour rows of (account, as_of), but for those `besides`."""
        recent = last_payments(edges, account.astype(np.int32), as_of_ms)
        earliest = np.full(edges.n_accounts, NEVER_MS)
        np.minimum.at(earliest, recent.neighbour, recent.as_of_ms)
        known = edges.codes(list(besides))
        earliest[known[known >= 0]] = NEVER_MS
        described = np.flatnonzero(earliest < NEVER_MS)
        return cls(account_ids=edges.account_ids[described].tolist(), described_ms=earliest[described])


def with_counterparties(
    edges: EdgeTable,
    own: Records,
    others: Counterparties,
    records: RecordStore,
    online: OnlineStore | None,
    *,
    before_ms: int,
    hub_payments: int = HUB_PAYMENTS,
) -> EdgeTable:
    """Return `edges`, made of `own`, with what it takes to describe `others`.

    An account's rows tell its standing where they are all there, no event of it is pending, and none of them is later
    than the instant or was made from more than `own`. The payments of all other accounts are read, but not those of a
    hub, whose rows only must not be later: they may lack its last few of more than `hub_payments` payments.
    """
    standings = None
    missing = others.account_ids
    if online is not None and missing:
        known, standings = _read_standings(online, others, own.max_seq, hub_payments)
        missing = [account for account, told in zip(missing, known.tolist(), strict=True) if not told]
    if missing:
        theirs = records.read_accounts(missing, before_ms=before_ms)
        edges = EdgeTable.from_arrow(
            _merged(own.transactions, theirs.transactions, own.max_seq),
            _merged(own.statuses, theirs.statuses, own.max_seq),
            _merged(own.labels, theirs.labels, own.max_seq),
            max_seq=own.max_seq,
        )
    return edges if standings is None else replace(edges, standings=standings)


def _read_standings(
    online: OnlineStore, others: Counterparties, max_seq: int, hub_payments: int
) -> tuple[npt.NDArray[np.bool_], RowStandings]:
    keys = [(account,) for account in others.account_ids]
    views = {name: catalog().schema(name) for name in STANDING_VIEWS}
    packed, pending = online.read_with_pending([(view, keys) for view in views.values()], keys)
    blocks = {
        name: RowBlock.from_packed(view, values) for (name, view), values in zip(views.items(), packed, strict=True)
    }
    totals = np.stack([blocks[view].int64(name)[0] for view, name in STANDING])
    complete = np.array([key not in pending for key in keys], np.bool_)
    for block in blocks.values():
        complete &= block.created_us <= CREATED_EPOCH_US + max_seq
    known = complete | (totals[SENT_COUNT] + totals[RECEIVED_COUNT] > hub_payments)
    for block in blocks.values():
        known &= block.present & (block.as_of_ms <= others.described_ms)
    numbers = totals.T.tolist()
    return known, RowStandings(told={others.account_ids[at]: numbers[at] for at in np.flatnonzero(known).tolist()})


def _merged(first: pa.Table, second: pa.Table, max_seq: int) -> pa.Table:
    """Join two reads, each row once. The second may have seen more: what the first had not is left out of both."""
    both = pa.concat_tables([first, second])
    seq = both["seq"].to_numpy()
    _, once = np.unique(seq, return_index=True)
    return both.take(pa.array(once[seq[once] <= max_seq]))
