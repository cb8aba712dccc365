"""What honest people do: shop, withdraw cash, pay friends, earn, pay rent, travel, split bills and pay back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graph_features.clock import DAY_MS, HOUR_MS, MINUTE_MS
from infra.simulator.payments import Payments
from infra.simulator.places import ONLINE, TRADES, TRANSFER
from infra.simulator.population import (
    CLOCK_STEPS,
    FRIENDS,
    HABITUAL_SHOPS,
    HABITUAL_SITES,
    Float,
    Int,
    Population,
    euros_to_minor,
    popular,
)

_WEEKDAYS = np.array([0.95, 0.95, 1.0, 1.05, 1.2, 1.15, 0.7])
_CASH_UNITS = np.array([20, 30, 40, 50, 60, 80, 100, 150, 200, 300])
_CASH_SHARES = np.array([0.16, 0.08, 0.12, 0.24, 0.1, 0.06, 0.13, 0.05, 0.04, 0.02])
_TRADE_AMOUNTS = np.array([trade.amount for trade in TRADES])
_ROUND_EUROS = np.array([5.0, 10.0, 20.0, 50.0])


def everyday(rng: np.random.Generator, people: Population, *, first_day: int, last_day: int, start_ms: int) -> Payments:
    """Genuine payments of the days [first_day, last_day), in no particular order, none outside of them."""
    expected = people.habits.per_day.sum() * (last_day - first_day)
    parts = [
        _habitual(rng, people, first_day, last_day),
        _monthly(rng, people, first_day, last_day, start_ms),
        _split_bills(rng, people, first_day, last_day, int(rng.poisson(0.004 * expected))),
        _paid_back(rng, people, first_day, last_day, int(rng.poisson(0.01 * expected))),
    ]
    payments = with_things(rng, people, Payments.concat(parts))
    return payments.with_times(start_ms + payments.ts_ms)


def minutes_of_day(rng: np.random.Generator, people: Population, customer: Int) -> Int:
    """A minute of the day for each customer, by their clocks."""
    quantile = (rng.random(len(customer)) * CLOCK_STEPS).astype(np.int64)
    return people.clocks[people.habits.clock[customer], quantile]


def shop_amounts(rng: np.random.Generator, people: Population, customer: Int, shop: Int) -> Int:
    """What these customers leave in these shops, in minor units of the shop's currency."""
    log_euros = np.log(_TRADE_AMOUNTS[people.trade[shop]]) + people.habits.log_wealth[customer]
    euros = np.exp(log_euros + rng.normal(0, 0.55, len(customer)))
    euros = np.where(rng.random(len(customer)) < 0.1, np.maximum(np.round(euros), 1), euros)
    return euros_to_minor(euros, people.accounts.currency[shop])


def transfer_amounts(rng: np.random.Generator, people: Population, customer: Int, shift: float = 0.0) -> Int:
    """What these customers send to people, in minor units of their own currency; many are round."""
    log_euros = np.log(60) + shift + people.habits.log_wealth[customer]
    euros = np.exp(log_euros + rng.normal(0, 0.95, len(customer)))
    unit = rng.choice(_ROUND_EUROS, len(customer))
    is_round = rng.random(len(customer)) < 0.45
    euros = np.where(is_round, np.maximum(np.round(euros / unit), 1) * unit, euros)
    return euros_to_minor(euros, people.accounts.currency[customer])


def cash_amounts(rng: np.random.Generator, n: int) -> Int:
    """What people draw from machines, in minor units of whatever currency."""
    drawn: Int = rng.choice(_CASH_UNITS, n, p=_CASH_SHARES) * 100
    return drawn


def with_things(rng: np.random.Generator, people: Population, payments: Payments) -> Payments:
    """Add the sender's own device, card and address where the channel has them; times are since the start."""
    n, things = len(payments), people.things
    is_customer = payments.sender < people.customers
    who = np.where(is_customer, payments.sender, 0)
    day = payments.ts_ms // DAY_MS
    main = np.where(day >= things.new_device_day[who], things.new_device[who], things.device[who])
    second = (things.second_device[who] >= 0) & (rng.random(n) < 0.2)
    device = np.where(second, things.second_device[who], main)
    device = np.where(rng.random(n) < 0.02, -1, device)
    second = (things.second_card[who] >= 0) & (rng.random(n) < 0.3)
    card = np.where(second, things.second_card[who], things.card[who])
    mobile = things.first_mobile_ip + rng.integers(0, things.mobile_ips, n)
    ip = np.where(rng.random(n) < 0.35, mobile, things.home_ip[who])
    # Companies pay from one device and one address each.
    device = np.where(is_customer, device, things.first_foreign_device + payments.sender)
    ip = np.where(is_customer, ip, things.first_foreign_ip + payments.sender)
    remote = (payments.channel == ONLINE) | (payments.channel == TRANSFER)
    return replace(
        payments,
        device=np.where(remote, device, -1),
        card=np.where(payments.channel == TRANSFER, -1, card),
        ip=np.where(remote, ip, -1),
    )


def _habitual(rng: np.random.Generator, people: Population, first_day: int, last_day: int) -> Payments:
    habits = people.habits
    counts = rng.poisson(habits.per_day * (last_day - first_day))
    sender = np.repeat(np.arange(people.customers), counts)
    n = len(sender)
    weights = np.cumsum(_WEEKDAYS[np.arange(first_day, last_day) % 7])
    day = first_day + np.searchsorted(weights / weights[-1], rng.random(n), side="right")
    ts_ms = day * DAY_MS + minutes_of_day(rng, people, sender) * MINUTE_MS + rng.integers(0, MINUTE_MS, n)
    channel = (rng.random(n)[:, None] >= habits.channel_edges[sender]).sum(axis=1)
    city = _whereabouts(people, sender, day)
    receiver = np.empty(n, np.int64)
    amount = np.empty(n, np.int64)
    at_shop, at_site, sending, drawing = (np.flatnonzero(channel == kind) for kind in range(4))
    receiver[at_shop] = _shops(rng, people, sender[at_shop], city[at_shop])
    receiver[at_site] = _sites(rng, people, sender[at_site])
    receiver[sending] = _friends(rng, people, sender[sending])
    receiver[drawing] = people.machine_of_city[city[drawing]]
    buying = np.concatenate([at_shop, at_site])
    amount[buying] = shop_amounts(rng, people, sender[buying], receiver[buying])
    amount[sending] = transfer_amounts(rng, people, sender[sending])
    amount[drawing] = cash_amounts(rng, len(drawing))
    priced_by = np.where(channel == TRANSFER, sender, receiver)
    return Payments.genuine(
        ts_ms=ts_ms,
        sender=sender,
        receiver=receiver,
        amount=amount,
        currency=people.accounts.currency[priced_by],
        channel=channel,
    )


def _whereabouts(people: Population, customer: Int, day: Int) -> Int:
    """The city in which each customer is on that day."""
    habits = people.habits
    city = people.accounts.city[customer].copy()
    for trip in range(habits.trip_start.shape[1]):
        start = habits.trip_start[customer, trip]
        away = (day >= start) & (day < start + habits.trip_days[customer, trip])
        city[away] = habits.trip_city[customer, trip][away]
    return city


def _shops(rng: np.random.Generator, people: Population, customer: Int, city: Int) -> Int:
    """Mostly the habitual ones at home; others of the city where one is; now and then one of any city."""
    n = len(customer)
    shop = people.habits.shops[customer, (rng.random(n) ** 2 * HABITUAL_SHOPS).astype(np.int64)]
    elsewhere = (city != people.accounts.city[customer]) | (rng.random(n) < 0.2)
    city = np.where(rng.random(n) < 0.015, rng.integers(0, len(people.shops_by_city), n), city)
    for number, shelf in enumerate(people.shops_by_city):
        rows = np.flatnonzero(elsewhere & (city == number))
        shop[rows] = popular(rng, shelf, len(rows))
    return shop


def _sites(rng: np.random.Generator, people: Population, customer: Int) -> Int:
    n = len(customer)
    habitual = people.habits.sites[customer, (rng.random(n) ** 2 * HABITUAL_SITES).astype(np.int64)]
    return np.where(rng.random(n) < 0.3, popular(rng, people.sites, n, 1.5), habitual)


def _friends(rng: np.random.Generator, people: Population, customer: Int) -> Int:
    n = len(customer)
    friend = people.habits.friends[customer, (rng.random(n) ** 1.5 * FRIENDS).astype(np.int64)]
    stranger = (customer + rng.integers(1, people.customers, n)) % people.customers
    return np.where(rng.random(n) < 0.12, stranger, friend)


def _monthly(rng: np.random.Generator, people: Population, first_day: int, last_day: int, start_ms: int) -> Payments:
    """Salaries late in the month and rents early: many payments from one account, and to one account, at one time."""
    days = np.arange(first_day, last_day)
    of_month = (start_ms // DAY_MS + days).astype("datetime64[D]")
    of_month = (of_month - of_month.astype("datetime64[M]")).astype(np.int64) + 1
    habits = people.habits
    paid, renting = np.flatnonzero(habits.employer >= 0), np.flatnonzero(habits.landlord >= 0)
    parts = []
    for day, number in zip(days, of_month, strict=True):
        earners = paid[habits.employer[paid] % 5 == 29 - number]
        tenants = renting[renting % 4 == number - 1]
        for sender, receiver, amount, hour in (
            (habits.employer[earners], earners, habits.salary[earners], 6),
            (tenants, habits.landlord[tenants], habits.rent[tenants], 9),
        ):
            n = len(sender)
            parts.append(
                Payments.genuine(
                    ts_ms=day * DAY_MS + hour * HOUR_MS + rng.integers(0, 3 * HOUR_MS, n),
                    sender=sender,
                    receiver=receiver,
                    amount=amount,
                    currency=np.zeros(n, np.int64),
                    channel=np.full(n, TRANSFER),
                )
            )
    return Payments.concat(parts)


def _split_bills(rng: np.random.Generator, people: Population, first_day: int, last_day: int, events: int) -> Payments:
    """Friends pay their share to the one who paid for all: an honest fan-in."""
    host = rng.integers(0, people.customers, events)
    guests = rng.integers(2, FRIENDS + 1, events)
    at_ms = first_day * DAY_MS + (rng.random(events) * (last_day - first_day) * DAY_MS).astype(np.int64)
    share = np.round(rng.lognormal(np.log(28), 0.6, events) * 2) / 2
    event = np.repeat(np.arange(events), guests)
    place = np.arange(len(event)) - np.repeat(np.cumsum(guests) - guests, guests)
    delay = rng.exponential(8 * HOUR_MS, len(event)).astype(np.int64)
    return _between_people(
        people,
        sender=people.habits.friends[host[event], place],
        receiver=host[event],
        euros=share[event],
        ts_ms=_within(at_ms[event] + delay, first_day, last_day),
    )


def _paid_back(rng: np.random.Generator, people: Population, first_day: int, last_day: int, events: int) -> Payments:
    """A friend lends and gets the same sum back: an honest cycle of two."""
    lender = rng.integers(0, people.customers, events)
    friend = people.habits.friends[lender, rng.integers(0, FRIENDS, events)]
    euros = np.maximum(np.round(rng.lognormal(np.log(70), 0.8, events) / 5), 1) * 5
    lent_ms = first_day * DAY_MS + (rng.random(events) * (last_day - first_day) * DAY_MS).astype(np.int64)
    back_ms = lent_ms + rng.exponential(2 * DAY_MS, events).astype(np.int64)
    return _between_people(
        people,
        sender=np.concatenate([lender, friend]),
        receiver=np.concatenate([friend, lender]),
        euros=np.concatenate([euros, euros]),
        ts_ms=_within(np.concatenate([lent_ms, back_ms]), first_day, last_day),
    )


def _between_people(people: Population, *, sender: Int, receiver: Int, euros: Float, ts_ms: Int) -> Payments:
    currency = people.accounts.currency[sender]
    return Payments.genuine(
        ts_ms=ts_ms,
        sender=sender,
        receiver=receiver,
        amount=euros_to_minor(euros, currency),
        currency=currency,
        channel=np.full(len(ts_ms), TRANSFER),
    )


def _within(ts_ms: Int, first_day: int, last_day: int) -> Int:
    """Times brought back into the days [first_day, last_day) by wrapping round."""
    first_ms, length_ms = first_day * DAY_MS, (last_day - first_day) * DAY_MS
    return first_ms + (ts_ms - first_ms) % length_ms
