"""Fraud with what belongs to others: cards, terminals, accounts."""

from __future__ import annotations

import numpy as np

from graph_features.clock import DAY_MS, HOUR_MS, MINUTE_MS
from infra.simulator.everyday import cash_amounts, minutes_of_day, shop_amounts, transfer_amounts
from infra.simulator.payments import RECEIVER, SENDER
from infra.simulator.places import ATM, CARD_PRESENT, ONLINE, TRANSFER
from infra.simulator.population import Int, Population, popular
from infra.simulator.steps import CAMPAIGNS_PER_GANG, Steps, running, spread


def stolen_cards(rng: np.random.Generator, people: Population, campaigns: int) -> Steps:
    """A few purchases within days at places where the owner never shops, often a small one first."""
    campaign, place = spread(rng, 3, 8, campaigns)
    n = len(campaign)
    victim = rng.integers(0, people.customers, campaigns)[campaign]
    # A gang works in one city; the card may come from anywhere.
    gang_city = rng.integers(0, len(people.shops_by_city), campaigns // CAMPAIGNS_PER_GANG + 1)
    city = gang_city[campaign // CAMPAIGNS_PER_GANG]
    shop = np.empty(n, np.int64)
    for number, shelf in enumerate(people.shops_by_city):
        rows = np.flatnonzero(city == number)
        shop[rows] = popular(rng, shelf, len(rows), 1.2)
    remote = rng.random(n) < 0.5
    shop = np.where(remote, popular(rng, people.sites, n, 1.2), shop)
    amount = shop_amounts(rng, people, victim, shop)
    amount = np.where(rng.random(n) < 0.45, (amount * rng.uniform(1.2, 2.6, n)).astype(np.int64), amount)
    probe = (place == 0) & (rng.random(n) < 0.4)
    return Steps(
        campaign=campaign,
        after_ms=running(campaign, rng.exponential(7 * HOUR_MS, n)),
        sender=victim,
        receiver=shop,
        amount=np.where(probe, rng.integers(80, 700, n), amount),
        channel=np.where(remote, ONLINE, CARD_PRESENT),
        party=SENDER,
    )


def terminals(rng: np.random.Generator, people: Population, campaigns: int) -> Steps:
    """Copied cards are charged at the shop whose terminal copied them, among its honest business."""
    campaign, _ = spread(rng, 8, 22, campaigns)
    n = len(campaign)
    home = rng.choice(people.accounts.city[: people.customers], campaigns)
    terminal = np.array([popular(rng, people.shops_by_city[city], 1, 1.4)[0] for city in home])
    by_city = [np.flatnonzero(people.accounts.city[: people.customers] == city) for city in home]
    local = np.array([rng.choice(by_city[one]) for one in campaign])
    anyone = rng.integers(0, people.customers, n)
    sender = np.where(rng.random(n) < 0.75, local, anyone)
    days_open = rng.uniform(3, 12, campaigns)[campaign]
    day = np.floor(rng.random(n) * days_open).astype(np.int64)
    return Steps(
        campaign=campaign,
        after_ms=day * DAY_MS + minutes_of_day(rng, people, sender) * MINUTE_MS + rng.integers(0, MINUTE_MS, n),
        sender=sender,
        receiver=terminal[campaign],
        amount=(shop_amounts(rng, people, sender, terminal[campaign]) * rng.uniform(0.9, 1.6, n)).astype(np.int64),
        channel=np.full(n, CARD_PRESENT),
        party=RECEIVER,
        from_midnight=True,
    )


def takeovers(rng: np.random.Generator, people: Population, campaigns: int, mules: Int) -> Steps:
    """Transfers to a mule within hours, from a device that the owner never used; the mule passes the money on."""
    campaign, place = spread(rng, 4, 8, campaigns)
    n = len(campaign)
    victim = rng.integers(0, people.customers, campaigns)
    which = rng.integers(0, len(mules), campaigns)
    victim = np.where(victim == mules[which], (victim + 1) % people.customers, victim)
    size = np.bincount(campaign, minlength=campaigns)
    onward = place >= size[campaign] - 2
    mule, next_mule = mules[which][campaign], mules[(which + 1) % len(mules)][campaign]
    in_cash = onward & (rng.random(n) < 0.6)
    machine = people.machine_of_city[people.accounts.city[mule]]
    sender = np.where(onward, mule, victim[campaign])
    amount = transfer_amounts(rng, people, sender, 0.7)
    return Steps(
        campaign=campaign,
        after_ms=running(campaign, np.where(onward, 5 * HOUR_MS, 0.6 * HOUR_MS) * rng.exponential(1, n)),
        sender=sender,
        receiver=np.where(onward, np.where(in_cash, machine, next_mule), mule),
        amount=np.where(in_cash, cash_amounts(rng, n), amount),
        channel=np.where(in_cash, ATM, TRANSFER),
        party=np.where(onward, SENDER, RECEIVER),
    )
