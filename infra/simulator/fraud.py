"""Planted fraud. Most single payments of a campaign look ordinary; what betrays it is the company it keeps.

Thieves use shops, hours and amounts like other people's; rings move sums that friends and landlords move too. Gangs
come back: the same mules, devices and terminals serve several campaigns.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graph_features.clock import DAY_MS, MINUTE_MS
from infra.simulator.everyday import minutes_of_day, with_things
from infra.simulator.payments import FIRST_RING, RECEIVER, SCENARIOS, Payments
from infra.simulator.places import ONLINE, TRANSFER
from infra.simulator.population import Int, Population
from infra.simulator.rings import cycles, fans, scatter_gathers
from infra.simulator.steps import CAMPAIGNS_PER_GANG, Steps
from infra.simulator.thefts import stolen_cards, takeovers, terminals

FRAUD_SHARE = 0.011
"""Of the customers' own payments; salaries, rents and shared bills come on top, so about 1 % of all."""

# How the fraudulent payments are shared out, and about how many one campaign has.
_SHARES = {"stolen_card": 0.28, "compromised_terminal": 0.2, "account_takeover": 0.16}
_RING_SHARE = 0.09
_SIZES = {
    "stolen_card": 5.5,
    "compromised_terminal": 15,
    "account_takeover": 6.5,
    "cycle": 6.5,
    "fan_in": 8,
    "fan_out": 8,
    "scatter_gather": 12,
}


def fraud(rng: np.random.Generator, people: Population, *, days: int, expected: float) -> Payments:
    """All fraudulent payments, in order of time since the start: at least one campaign of each scenario."""
    mules = _pool(rng, people.customers, 0.02, least=6)
    recruits = np.concatenate([mules, _pool(rng, people.customers, 0.04, least=24)])
    recruits = rng.permutation(np.unique(recruits))
    parts, rings = [], 0
    for number, scenario in enumerate(SCENARIOS):
        share = _SHARES.get(scenario, _RING_SHARE)
        campaigns = max(1, round(FRAUD_SHARE * expected * share / _SIZES[scenario]))
        steps = _plan(rng, people, scenario, campaigns, mules, recruits)
        ring = rings if number >= FIRST_RING else None
        parts.append(_payments(rng, people, number, steps, days=days, first_ring=ring))
        rings += campaigns if number >= FIRST_RING else 0
    return Payments.concat(parts).sorted()


def _plan(
    rng: np.random.Generator, people: Population, scenario: str, campaigns: int, mules: Int, recruits: Int
) -> Steps:
    if scenario == "stolen_card":
        return stolen_cards(rng, people, campaigns)
    if scenario == "compromised_terminal":
        return terminals(rng, people, campaigns)
    if scenario == "account_takeover":
        return takeovers(rng, people, campaigns, mules)
    if scenario == "cycle":
        return cycles(rng, people, campaigns, recruits)
    if scenario == "scatter_gather":
        return scatter_gathers(rng, people, campaigns, recruits)
    return fans(rng, people, campaigns, recruits, inwards=scenario == "fan_in")


def _pool(rng: np.random.Generator, customers: int, share: float, *, least: int) -> Int:
    return rng.permutation(customers)[: min(customers, max(least, round(share * customers)))]


def _payments(
    rng: np.random.Generator, people: Population, scenario: int, steps: Steps, *, days: int, first_ring: int | None
) -> Payments:
    """Place campaigns in time, add devices and addresses, and name the scenario."""
    n = len(steps.campaign)
    priced_by = np.where(steps.channel == TRANSFER, steps.sender, steps.receiver)
    payments = Payments.genuine(
        ts_ms=_placed(rng, people, steps, days),
        sender=steps.sender,
        receiver=steps.receiver,
        amount=np.maximum(steps.amount, 10),
        currency=people.accounts.currency[priced_by],
        channel=steps.channel,
    )
    payments = _with_thieves_things(rng, people, SCENARIOS[scenario], steps, with_things(rng, people, payments))
    ring = np.full(n, -1) if first_ring is None else first_ring + steps.campaign
    return replace(
        payments,
        scenario=np.full(n, scenario),
        ring=ring,
        party=np.broadcast_to(np.asarray(steps.party, np.int64), (n,)),
    )


def _placed(rng: np.random.Generator, people: Population, steps: Steps, days: int) -> Int:
    """Times since the start: campaigns begin when their first sender is awake and end within the period."""
    campaigns = int(steps.campaign[-1]) + 1
    length_ms = np.zeros(campaigns, np.int64)
    np.maximum.at(length_ms, steps.campaign, steps.after_ms)
    # A short period squeezes campaigns that would not fit.
    room_ms = days * DAY_MS - 1
    squeeze = np.minimum(1.0, 0.7 * room_ms / np.maximum(length_ms, 1))
    after_ms = (steps.after_ms * squeeze[steps.campaign]).astype(np.int64)
    first_sender = steps.sender[np.searchsorted(steps.campaign, np.arange(campaigns))]
    begin_ms = rng.integers(0, days, campaigns) * DAY_MS + minutes_of_day(rng, people, first_sender) * MINUTE_MS
    begin_ms = np.minimum(begin_ms, room_ms - (length_ms * squeeze).astype(np.int64))
    if steps.from_midnight:
        begin_ms -= begin_ms % DAY_MS
    placed: Int = begin_ms[steps.campaign] + after_ms
    return placed


def _with_thieves_things(
    rng: np.random.Generator, people: Population, scenario: str, steps: Steps, payments: Payments
) -> Payments:
    """A stolen card and a stolen password are used from the gang's devices; some rings share one device."""
    things, n = people.things, len(payments)
    gang = steps.campaign // CAMPAIGNS_PER_GANG
    kind = SCENARIOS.index(scenario)
    # Codes that nobody else has: behind those of the companies, one block per scenario.
    code = len(people.accounts.ids) + (gang * 2 + steps.campaign % 2) * len(SCENARIOS) + kind
    stolen = np.zeros(n, np.bool_)
    if scenario == "stolen_card":
        stolen = payments.channel == ONLINE
    elif scenario == "account_takeover":
        stolen = (payments.channel == TRANSFER) & (np.asarray(steps.party) == RECEIVER)
    elif kind >= FIRST_RING:
        sharing = rng.random(int(steps.campaign[-1]) + 1) < 0.3
        stolen = sharing[steps.campaign] & (rng.random(n) < 0.6)
    device_known = stolen & (rng.random(n) < 0.9)
    own_ip = stolen & (rng.random(n) < 0.5)
    mobile = things.first_mobile_ip + rng.integers(0, things.mobile_ips, n)
    return replace(
        payments,
        device=np.where(device_known, things.first_foreign_device + code, payments.device),
        ip=np.where(own_ip, things.first_foreign_ip + code, np.where(stolen, mobile, payments.ip)),
        card=np.where((payments.card >= 0) & stolen, things.card[steps.sender % people.customers], payments.card),
    )
