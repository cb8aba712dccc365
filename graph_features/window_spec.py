"""Look-back windows: their lengths and grains, the state that they are finished from, and the features that are.

Constants and plain arithmetic alone: training and serving read them without any kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from graph_features.clock import DAY_MS, HOUR_MS, MINUTE_MS

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A look-back before as_of, as_of excluded.

    It begins `length_ms` before as_of, rounded down to a whole number of `grain_ms` since 1970 (UTC), so that it is up
    to one grain longer than its name says; without a length it is all time.
    """

    name: str
    length_ms: int | None
    grain_ms: int = 1

    def start_ms(self, as_of_ms: Int64) -> Int64:
        """First instant of the window at each as_of; a window of all time has none and raises TypeError."""
        assert self.length_ms is not None
        return (as_of_ms - self.length_ms) // self.grain_ms * self.grain_ms


WINDOWS: Final = (
    Window(name="1h", length_ms=HOUR_MS, grain_ms=MINUTE_MS),
    Window(name="1d", length_ms=DAY_MS, grain_ms=HOUR_MS),
    Window(name="7d", length_ms=7 * DAY_MS, grain_ms=HOUR_MS),
    Window(name="30d", length_ms=30 * DAY_MS, grain_ms=DAY_MS),
    Window(name="all", length_ms=None),
)
BY_NAME: Final = {window.name: window for window in WINDOWS}

BOUNDED: Final = WINDOWS[:-1]
"""Those that payments leave as time passes, shortest first: each lies within the next."""

COUNTERPARTY_WINDOWS: Final = tuple(BY_NAME[name] for name in ("7d", "30d"))
BOTH_WAYS_WINDOWS: Final = tuple(BY_NAME[name] for name in ("1d", "7d", "30d"))
FLOW_WINDOW: Final = BY_NAME["7d"]
LABEL_WINDOWS: Final = tuple(BY_NAME[name] for name in ("1d", "7d", "30d"))

# ---------------------------------------------------------------- the state

WINDOWS_VIEW: Final = "account_windows"
SIDES: Final = ("sent", "received")

PAYMENT_LEVELS: Final = tuple(BY_NAME[name] for name in ("1h", "7d", "30d"))
LABEL_LEVELS: Final = tuple(BY_NAME[name] for name in ("7d", "30d"))
"""The longest window of each grain, finest first. What lies within it is kept in buckets of that grain."""

BUCKET: Final = ("start_minute", "count", "amount_sum", "last_counterparties")
"""One bucket: minutes from 1970 to its start (UTC), its payments, their sum, and the number of counterparties whose
last payment with the account, in that direction, is one of them."""

LABEL_BUCKET: Final = ("start_minute", "genuine", "fraud")
"""One bucket of labels by when they became known: its start, and the payments of either kind."""

# ---------------------------------------------------------------- what is finished from it

ACTIVITY_FEATURES: Final = (
    *(
        f"{side}_{operation}_{window.name}"
        for operation in ("count", "amount_sum", "amount_mean", "amount_max", "amount_std")
        for window in BOUNDED
        for side in SIDES
    ),
    *(f"unique_{others}_{window.name}" for window in COUNTERPARTY_WINDOWS for others in ("receivers", "senders")),
    *(f"transaction_count_{window.name}" for window in BOTH_WAYS_WINDOWS),
    f"net_flow_{FLOW_WINDOW.name}",
)

EXPOSURE_FEATURES: Final = tuple(
    f"{side}_known_fraud_{operation}_{window.name}"
    for operation in ("count", "ratio")
    for window in LABEL_WINDOWS
    for side in SIDES
)

FINISHED: Final = {"account_activity": ACTIVITY_FEATURES, "account_exposure": EXPOSURE_FEATURES}
"""By view, the features whose windows go on moving after the row's as_of."""
