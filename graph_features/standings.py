"""What accounts had done by now, in a few numbers off their stored rows, in place of all of their payments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

STANDING: Final = (
    ("account_activity", "sent_count_all"),
    ("account_activity", "sent_amount_sum_all"),
    ("account_activity", "received_count_all"),
    ("account_activity", "received_amount_sum_all"),
    ("account_behaviour", "first_attempt_timestamp"),
    ("account_exposure", "sent_known_fraud_count_all"),
    ("account_exposure", "received_known_fraud_count_all"),
)
"""View and feature of each number. None of them changes between an account's last event and the next, so the newest
rows tell them for any later instant before that."""

SENT_COUNT: Final = 0
RECEIVED_COUNT: Final = 2
"""Positions in STANDING."""

LARGEST_SUM: Final = 2**62
"""Minor units that the amounts of an account, sent or received, may add up to."""

HUB_PAYMENTS: Final = 500_000
"""An account with more payments than this is a hub: its rows take seconds, so that they are left to the batch."""

STANDING_VIEWS: Final = tuple(dict.fromkeys(view for view, _ in STANDING))


class Standings(Protocol):
    """What tells the numbers of STANDING of accounts whose payments need not be in a table."""

    def knows(self, account_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return which of these accounts it can tell of."""

    def totals(self, account_ids: Sequence[str], account: Int64, as_of_ms: Int64) -> Int64:
        """Return the numbers, (len(STANDING), k), of `account_ids[account]` before `as_of_ms`, k of each."""


@dataclass(frozen=True, kw_only=True)
class RowStandings:
    """The numbers off stored rows: those of an account, in order of STANDING. What happened since is not in them."""

    told: Mapping[str, Sequence[int]]

    def knows(self, account_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        return np.array([account_id in self.told for account_id in account_ids], np.bool_)

    def totals(self, account_ids: Sequence[str], account: Int64, as_of_ms: Int64) -> Int64:  # noqa: ARG002  rows have one
        known = np.array([self.told[account_id] for account_id in account_ids], np.int64)
        return known.reshape(-1, len(STANDING))[account].T
