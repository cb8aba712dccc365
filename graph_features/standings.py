"""What accounts had done by now, in a few numbers off their stored rows, in place of all of their payments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

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

HUB_PAYMENTS: Final = 200_000
"""An account with more payments than this is a hub: to read them all takes seconds, so that is left to the batch."""

STANDING_VIEWS: Final = tuple(dict.fromkeys(view for view, _ in STANDING))


@dataclass(frozen=True, kw_only=True)
class Standings:
    """The numbers of k accounts: `totals` is (len(STANDING), k), its columns those of `account_ids`."""

    account_ids: Sequence[str]
    totals: Int64
