"""Who there is: customers with habits, shops, cash machines, employers and landlords, and what they own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infra.simulator.places import CITIES, COUNTRIES, CURRENCY_OF_COUNTRY, PER_EUR, TRADES

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

HABITUAL_SHOPS = 8
HABITUAL_SITES = 4
FRIENDS = 6
MINUTES = 1440
CLOCK_STEPS = 4096
_TRIP_EVERY_DAYS = 75


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """All accounts. Codes run over customers, then shops, cash machines, employers and landlords."""

    ids: npt.NDArray[np.str_]
    city: Int
    lat: Float
    lon: Float
    placeless: npt.NDArray[np.bool_]
    """Whose place is not known: their country and coordinates are null in the files."""

    @property
    def country(self) -> Int:
        """Positions in places.COUNTRIES."""
        return _COUNTRY_OF_CITY[self.city]

    @property
    def currency(self) -> Int:
        """Positions in places.CURRENCIES."""
        return _CURRENCY_OF_CITY[self.city]


@dataclass(frozen=True, kw_only=True)
class Habits:
    """Of the c customers: how often, how much, when, by which channel, with whom (as account codes)."""

    per_day: Float
    log_wealth: Float
    clock: Int
    channel_edges: Float
    """Shape (c, 3): cumulative shares of card_present, online and transfer; the rest is cash."""
    shops: Int
    sites: Int
    friends: Int
    trip_start: Int
    trip_days: Int
    trip_city: Int
    """Shape (c, trips): day, length and city of each absence."""
    employer: Int
    salary: Int
    landlord: Int
    rent: Int
    """Employer and landlord are account codes, -1 without; salary and rent in cents a month."""


@dataclass(frozen=True, kw_only=True)
class Things:
    """Devices, cards and addresses of the c customers, as codes; -1 where there is no second one."""

    device: Int
    second_device: Int
    new_device: Int
    new_device_day: Int
    card: Int
    second_card: Int
    home_ip: Int
    mobile_ips: int
    """Mobile addresses are shared by everyone: codes from `first_mobile_ip` on."""
    first_mobile_ip: int
    first_foreign_device: int
    first_foreign_ip: int
    """From here on devices and addresses belong to companies and to thieves."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """Everything that stays the same through the simulated time."""

    customers: int
    accounts: Accounts
    habits: Habits
    things: Things
    shops_by_city: tuple[Int, ...]
    """Account codes of physical shops per city, most popular first; no city is without."""
    sites: Int
    """Account codes of online shops, most popular first."""
    machine_of_city: Int
    trade: Int
    """Position in TRADES per account, -1 for those that are no shops."""
    clocks: Int
    """Shape (types, CLOCK_STEPS): minute of the day at each quantile, per type of customer."""


_COUNTRY_OF_CITY = np.array([COUNTRIES.index(city.country) for city in CITIES])
_CURRENCY_OF_CITY = np.array([CURRENCY_OF_COUNTRY.get(city.country, 0) for city in CITIES])


def euros_to_minor(euros: Float, currency: Int) -> Int:
    """Amounts in minor units of their own currency, at least one unit's tenth."""
    minor: Int = np.maximum(np.round(euros * np.array(PER_EUR)[currency] * 100), 10).astype(np.int64)
    return minor


def populate(rng: np.random.Generator, *, customers: int, days: int, per_day: float) -> Population:
    """Draw a population; `per_day` is the mean number of payments of a customer a day."""
    shops = max(40, customers // 10)
    machines, employers, landlords = len(CITIES), max(3, customers // 120), max(2, customers // 200)
    kinds = {"c": customers, "m": shops, "a": machines, "e": employers, "l": landlords}
    accounts = _accounts(rng, kinds)
    first_machine = customers + shops
    accounts.city[first_machine : first_machine + machines] = np.arange(machines)
    trade = np.full(len(accounts.ids), -1)
    trade[customers:first_machine] = rng.choice(len(TRADES), shops, p=_shares([one.share for one in TRADES]))
    shops_by_city, sites = _shelves(accounts, trade)
    first_employer = first_machine + machines
    return Population(
        customers=customers,
        accounts=accounts,
        habits=_habits(
            rng,
            accounts.city[:customers],
            days=days,
            per_day=per_day,
            shops_by_city=shops_by_city,
            sites=sites,
            employers=np.arange(first_employer, first_employer + employers),
            landlords=np.arange(first_employer + employers, first_employer + employers + landlords),
        ),
        things=_things(rng, customers, days),
        shops_by_city=shops_by_city,
        sites=sites,
        machine_of_city=np.arange(first_machine, first_machine + machines),
        trade=trade,
        clocks=_clocks(),
    )


def _accounts(rng: np.random.Generator, kinds: dict[str, int]) -> Accounts:
    ids = np.concatenate([[f"{letter}{i:07d}" for i in range(count)] for letter, count in kinds.items()])
    n = len(ids)
    city = rng.choice(len(CITIES), n, p=_shares([one.weight for one in CITIES]))
    centre = np.array([(one.lat, one.lon) for one in CITIES])[city]
    spread = rng.normal(0, 0.08, (n, 2))
    return Accounts(
        ids=ids,
        city=city,
        lat=np.round(centre[:, 0] + spread[:, 0], 4),
        lon=np.round(centre[:, 1] + spread[:, 1], 4),
        placeless=rng.random(n) < 0.03,
    )


def _shelves(accounts: Accounts, trade: Int) -> tuple[tuple[Int, ...], Int]:
    """Physical shops per city and online shops. The order of codes is the order of popularity."""
    physical_trade = np.array([one.physical for one in TRADES])
    is_shop = trade >= 0
    physical = np.flatnonzero(is_shop & physical_trade[trade])
    sites = np.flatnonzero(is_shop & ~physical_trade[trade])
    everywhere = physical if len(physical) else np.flatnonzero(is_shop)
    by_city = []
    for city in range(len(CITIES)):
        here = physical[accounts.city[physical] == city]
        by_city.append(here if len(here) else everywhere)
    return tuple(by_city), sites if len(sites) else everywhere


def popular(rng: np.random.Generator, shelf: Int, size: int | tuple[int, ...], skew: float = 2.0) -> Int:
    """Draw from `shelf`, the first ones more often."""
    drawn: Int = shelf[(len(shelf) * rng.random(size) ** skew).astype(np.int64)]
    return drawn


def _habits(
    rng: np.random.Generator,
    city: Int,
    *,
    days: int,
    per_day: float,
    shops_by_city: tuple[Int, ...],
    sites: Int,
    employers: Int,
    landlords: Int,
) -> Habits:
    n = len(city)
    activity = rng.lognormal(0, 0.7, n)
    shops = np.empty((n, HABITUAL_SHOPS), np.int64)
    for number, shelf in enumerate(shops_by_city):
        here = np.flatnonzero(city == number)
        shops[here] = popular(rng, shelf, (len(here), HABITUAL_SHOPS))
    trips = 1 + days // _TRIP_EVERY_DAYS
    # Monthly payments must stay a small part where people pay seldom.
    monthly = min(1.0, per_day * 30 * 0.12)
    return Habits(
        per_day=activity * (per_day / activity.mean()),
        log_wealth=rng.normal(0, 0.45, n),
        clock=rng.choice(3, n, p=(0.6, 0.28, 0.12)),
        channel_edges=np.cumsum(rng.dirichlet((9.0, 4.5, 2.2, 0.9), n), axis=1)[:, :3],
        shops=shops,
        sites=popular(rng, sites, (n, HABITUAL_SITES)),
        friends=_friends(rng, n),
        trip_start=rng.integers(-5, days * 2, (n, trips)),
        trip_days=rng.integers(2, 8, (n, trips)),
        trip_city=rng.choice(len(CITIES), (n, trips), p=_shares([one.weight for one in CITIES])),
        employer=np.where(rng.random(n) < 0.6 * monthly, rng.choice(employers, n), -1),
        salary=np.round(rng.lognormal(np.log(2_100), 0.35, n) * 100).astype(np.int64),
        landlord=np.where(rng.random(n) < 0.3 * monthly, rng.choice(landlords, n), -1),
        rent=np.round(rng.lognormal(np.log(750), 0.3, n) / 5).astype(np.int64) * 500,
    )


def _friends(rng: np.random.Generator, n: int) -> Int:
    """Mostly people with near codes, so that circles of friends overlap; never oneself."""
    near = rng.integers(1, 13, (n, FRIENDS))
    far = rng.integers(1, n, (n, FRIENDS))
    step = np.where(rng.random((n, FRIENDS)) < 0.8, near, far)
    return (np.arange(n)[:, None] + step) % n


def _things(rng: np.random.Generator, n: int, days: int) -> Things:
    own = np.arange(n)
    household = np.where((rng.random(n) < 0.3) & (own > 0), own - 1, own)
    shares_device = (rng.random(n) < 0.3) & (household != own)
    mobile_ips = 8 + n // 40
    return Things(
        device=np.where(shares_device, household, own),
        second_device=np.where(rng.random(n) < 0.3, n + own, -1),
        new_device=2 * n + own,
        new_device_day=np.where(rng.random(n) < 0.2, rng.integers(0, days, n), days),
        card=own,
        second_card=np.where(rng.random(n) < 0.25, n + own, -1),
        home_ip=household,
        mobile_ips=mobile_ips,
        first_mobile_ip=n,
        first_foreign_device=3 * n,
        first_foreign_ip=n + mobile_ips,
    )


def _clocks() -> Int:
    """Minutes of the day at each quantile for people of the day, of the evening and of the night."""
    hours = np.arange(MINUTES) / 60
    shapes = (((13, 3.2), (19, 2.0)), ((20, 2.4), (14, 3.0)), ((23.5, 3.0), (17, 3.5)))
    table = []
    for peaks in shapes:
        weight = np.full(MINUTES, 0.04)
        for centre, width in peaks:
            gap = np.abs(hours - centre)
            weight += np.exp(-0.5 * (np.minimum(gap, 24 - gap) / width) ** 2)
        quantile = np.cumsum(weight) / weight.sum()
        table.append(np.searchsorted(quantile, (np.arange(CLOCK_STEPS) + 0.5) / CLOCK_STEPS))
    return np.array(table)


def _shares(weights: list[float]) -> Float:
    shares: Float = np.array(weights) / np.sum(weights)
    return shares
