"""The payments of campaigns before they have a place in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infra.simulator.population import Float, Int

CAMPAIGNS_PER_GANG = 6
"""Campaigns with consecutive numbers that share devices and a city."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The payments of several campaigns of one scenario, times since each campaign's beginning."""

    campaign: Int
    after_ms: Int
    sender: Int
    receiver: Int
    amount: Int
    channel: Int
    party: int | Int
    """Which account a fraud label will name: one for all, or one for each."""
    from_midnight: bool = False
    """Whether the times are times of day, so that campaigns must begin at midnight."""


def spread(rng: np.random.Generator, low: int, high: int, campaigns: int) -> tuple[Int, Int]:
    """Between low and high payments per campaign: the campaign of each, and its place in it."""
    counts = rng.integers(low, high + 1, campaigns)
    campaign = np.repeat(np.arange(campaigns), counts)
    return campaign, np.arange(len(campaign)) - np.repeat(np.cumsum(counts) - counts, counts)


def running(campaign: Int, gaps: Float) -> Int:
    """Gaps in milliseconds added up within each campaign, from the first payment's zero."""
    total = np.cumsum(gaps)
    first = np.searchsorted(campaign, campaign)
    since_first: Int = (total - total[first]).astype(np.int64)
    return since_first
