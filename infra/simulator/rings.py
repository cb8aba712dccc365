"""Rings: accounts that move money among themselves so that it is hard to follow."""

from __future__ import annotations

import numpy as np

from graph_features.clock import HOUR_MS
from infra.simulator.payments import BOTH
from infra.simulator.places import TRANSFER
from infra.simulator.population import Int, Population, euros_to_minor
from infra.simulator.steps import Steps, running, spread


def cycles(rng: np.random.Generator, people: Population, campaigns: int, recruits: Int) -> Steps:
    """A sum goes round three to six accounts, a little less at each, once or twice."""
    length = rng.integers(3, 7, campaigns)
    counts = length * rng.integers(1, 3, campaigns)
    campaign = np.repeat(np.arange(campaigns), counts)
    place = np.arange(len(campaign)) - np.repeat(np.cumsum(counts) - counts, counts)
    offset = rng.integers(0, len(recruits), campaigns)[campaign]
    turn = length[campaign]
    n = len(campaign)
    euros = rng.lognormal(np.log(160), 0.8, campaigns)[campaign] * (1 - rng.uniform(0.01, 0.05, n)) ** place
    sender = recruits[(offset + place % turn) % len(recruits)]
    return Steps(
        campaign=campaign,
        after_ms=running(campaign, rng.exponential(5 * HOUR_MS, n)),
        sender=sender,
        receiver=recruits[(offset + (place + 1) % turn) % len(recruits)],
        amount=euros_to_minor(euros, people.accounts.currency[sender]),
        channel=np.full(n, TRANSFER),
        party=BOTH,
    )


def fans(rng: np.random.Generator, people: Population, campaigns: int, recruits: Int, *, inwards: bool) -> Steps:
    """Many accounts pay one, or one pays many, within two days."""
    campaign, place = spread(rng, 5, 11, campaigns)
    n = len(campaign)
    offset = rng.integers(0, len(recruits), campaigns)[campaign]
    centre, rim = recruits[offset], recruits[(offset + 1 + place) % len(recruits)]
    sender = rim if inwards else centre
    euros = rng.lognormal(np.log(85), 0.6, campaigns)[campaign] * rng.uniform(0.7, 1.3, n)
    euros = np.where(rng.random(n) < 0.4, np.maximum(np.round(euros / 5), 1) * 5, euros)
    return Steps(
        campaign=campaign,
        after_ms=(rng.random(n) * 40 * HOUR_MS).astype(np.int64),
        sender=sender,
        receiver=centre if inwards else rim,
        amount=euros_to_minor(euros, people.accounts.currency[sender]),
        channel=np.full(n, TRANSFER),
        party=BOTH,
    )


def scatter_gathers(rng: np.random.Generator, people: Population, campaigns: int, recruits: Int) -> Steps:
    """One account pays several, and each passes it on, less a fee, to the same last one."""
    arms = rng.integers(4, 9, campaigns)
    campaign = np.repeat(np.arange(campaigns), 2 * arms)
    place = np.arange(len(campaign)) - np.repeat(np.cumsum(2 * arms) - 2 * arms, 2 * arms)
    width = arms[campaign]
    arm, gathering = place % width, place >= width
    offset = rng.integers(0, len(recruits), campaigns)[campaign]
    source, sink = recruits[offset], recruits[(offset + 1) % len(recruits)]
    middle = recruits[(offset + 2 + arm) % len(recruits)]
    # An arm's first payment stands `width` places before its second.
    first = np.where(gathering, np.arange(len(campaign)) - width, np.arange(len(campaign)))
    n = len(campaign)
    euros = (rng.lognormal(np.log(110), 0.7, n))[first] * np.where(gathering, rng.uniform(0.9, 0.98, n), 1)
    scattered_ms = (rng.random(n) * 12 * HOUR_MS)[first]
    after_ms = scattered_ms + np.where(gathering, (1 + rng.exponential(8, n)) * HOUR_MS, 0)
    sender = np.where(gathering, middle, source)
    return Steps(
        campaign=campaign,
        after_ms=after_ms.astype(np.int64),
        sender=sender,
        receiver=np.where(gathering, sink, middle),
        amount=euros_to_minor(euros, people.accounts.currency[sender]),
        channel=np.full(n, TRANSFER),
        party=BOTH,
    )
