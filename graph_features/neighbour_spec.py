"""What a row of `account_neighbours` holds. Constants alone: training and serving read them without any kernel."""

from __future__ import annotations

from typing import Final

NEIGHBOUR_COUNT: Final = 16
"""K: at most so many payments per row, newest first."""

NEIGHBOUR_PROFILE: Final = (
    "log1p_sent_count",
    "log1p_received_count",
    "log1p_sent_amount_mean",
    "log1p_received_amount_mean",
    "age_days",
    "known_fraud_count",
)
"""The P columns of `neighbour_profile`, a row-major (k, P) matrix flattened: the counterparty of each of the k payments
as of the row's own as_of. Means are of minor units and 0 without a payment; age is since the counterparty's first
payment, whatever its status; known frauds are its payments whose latest known label is fraud, those that it sent and
those that it received, so one to itself twice."""

NEIGHBOUR_PROFILE_SIZE: Final = len(NEIGHBOUR_PROFILE)

SENT: Final = 1
RECEIVED: Final = 0
"""Values of `neighbour_directions`, seen from the row's account. A payment to oneself counts as sent, once."""
