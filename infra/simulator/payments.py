"""Payments in the making: columns of codes, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from infra.simulator.population import Int

SCENARIOS = (
    "stolen_card",
    "compromised_terminal",
    "account_takeover",
    "cycle",
    "fan_in",
    "fan_out",
    "scatter_gather",
)
FIRST_RING = SCENARIOS.index("cycle")
GENUINE = -1
SENDER, RECEIVER, BOTH = range(3)
"""Positions in contracts.FRAUD_PARTIES."""


@dataclass(frozen=True, kw_only=True)
class Payments:
    """n payments. Accounts, devices, cards and addresses are codes, -1 for none; `amount` is in minor units."""

    ts_ms: Int
    sender: Int
    receiver: Int
    amount: Int
    currency: Int
    channel: Int
    device: Int
    card: Int
    ip: Int
    scenario: Int
    """Position in SCENARIOS, or GENUINE."""
    ring: Int
    """Number of the ring, -1 outside of rings."""
    party: Int
    """Which account a fraud label will name."""

    def __len__(self) -> int:
        return len(self.ts_ms)

    def take(self, rows: Int | npt.NDArray[np.bool_] | slice) -> Payments:
        return Payments(**{one.name: getattr(self, one.name)[rows] for one in fields(self)})

    def sorted(self) -> Payments:
        """In order of time; ties keep their order."""
        return self.take(np.argsort(self.ts_ms, kind="stable"))

    def with_times(self, ts_ms: Int) -> Payments:
        return replace(self, ts_ms=ts_ms)

    @classmethod
    def genuine(cls, *, ts_ms: Int, sender: Int, receiver: Int, amount: Int, currency: Int, channel: Int) -> Payments:
        """Genuine payments without device, card and address yet."""
        none = np.full(len(ts_ms), -1)
        return cls(
            ts_ms=ts_ms,
            sender=sender,
            receiver=receiver,
            amount=amount,
            currency=currency,
            channel=channel,
            device=none,
            card=none,
            ip=none,
            scenario=none,
            ring=none,
            party=none,
        )

    @classmethod
    def concat(cls, parts: Sequence[Payments]) -> Payments:
        return cls(**{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)})
