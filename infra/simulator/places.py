"""The world of the simulation: countries, cities, currencies, kinds of shops. Plain facts and plain inventions."""

from __future__ import annotations

from typing import Final, NamedTuple


class City(NamedTuple):
    """Where accounts live. `weight` is its share of people and shops, before normalisation."""

    country: str
    lat: float
    lon: float
    weight: float


CITIES: Final = (
    City("ES", 40.42, -3.70, 12),
    City("ES", 41.39, 2.17, 9),
    City("ES", 39.47, -0.38, 5),
    City("FR", 48.86, 2.35, 10),
    City("FR", 45.76, 4.84, 5),
    City("FR", 43.30, 5.37, 4),
    City("DE", 52.52, 13.40, 9),
    City("DE", 48.14, 11.58, 6),
    City("DE", 53.55, 9.99, 5),
    City("IT", 41.90, 12.50, 7),
    City("IT", 45.46, 9.19, 6),
    City("NL", 52.37, 4.90, 5),
    City("BE", 50.85, 4.35, 3),
    City("PT", 38.72, -9.14, 3),
    City("AT", 48.21, 16.37, 3),
    City("IE", 53.35, -6.26, 2),
    City("GB", 51.51, -0.13, 3),
    City("GB", 53.48, -2.24, 1),
    City("US", 40.71, -74.01, 2),
    City("US", 37.77, -122.42, 1),
    City("MM", 16.87, 96.20, 0.3),
    City("YE", 15.37, 44.19, 0.2),
)

COUNTRIES: Final = tuple(sorted({city.country for city in CITIES}))

CURRENCIES: Final = ("EUR", "USD", "GBP")
CURRENCY_OF_COUNTRY: Final = {"US": 1, "GB": 2}
PER_EUR: Final = (1.0, 1.09, 0.86)
"""Units of each currency per euro: about right, and the same for all time."""

CHANNELS: Final = ("card_present", "online", "transfer", "atm")
CARD_PRESENT, ONLINE, TRANSFER, ATM = range(4)


class Trade(NamedTuple):
    """A kind of shop: typical amount in euros, its share of shops, and whether it sells over the counter."""

    name: str
    amount: float
    share: float
    physical: bool


TRADES: Final = (
    Trade("grocery", 32, 0.22, True),
    Trade("fuel", 48, 0.10, True),
    Trade("restaurant", 27, 0.18, True),
    Trade("pharmacy", 17, 0.08, True),
    Trade("clothing", 62, 0.10, True),
    Trade("electronics", 170, 0.06, True),
    Trade("digital", 13, 0.10, False),
    Trade("marketplace", 45, 0.10, False),
    Trade("travel", 230, 0.06, False),
)
