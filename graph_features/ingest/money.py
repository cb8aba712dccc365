"""Money: decimal amounts to integer minor units, exactly, and from one currency to the base currency.

Nothing here rounds except the conversion to the base currency, which rounds half to even in integer arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.contracts import MAX_AMOUNT_MINOR
from graph_features.errors import SettingsError
from graph_features.ingest.faults import Faults, Mask
from graph_features.ingest.values import NUMBER, as_text, matches, truth
from graph_features.settings import IngestSettings

Int64 = npt.NDArray[np.int64]

DEFAULT_EXPONENT: Final = 2
EXPONENTS: Final = {
    **dict.fromkeys(
        (
            "BIF",
            "CLP",
            "DJF",
            "GNF",
            "ISK",
            "JPY",
            "KMF",
            "KRW",
            "PYG",
            "RWF",
            "UGX",
            "UYI",
            "VND",
            "VUV",
            "XAF",
            "XOF",
        ),
        0,
    ),
    "XPF": 0,
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    "CLF": 4,
    "UYW": 4,
}
"""Decimals of the ISO 4217 currencies that do not have two."""

WITHOUT_MINOR_UNIT: Final = frozenset(
    ("XAG", "XAU", "XBA", "XBB", "XBC", "XBD", "XDR", "XPD", "XPT", "XSU", "XTS", "XUA", "XXX")
)
"""ISO 4217 codes that are no money one pays with: metals, units of account, tests."""

_MAX_WHOLE_DIGITS: Final = 16
_PLAIN: Final = r"^(?P<sign>[+-]?)(?P<whole>\d*)(?:\.(?P<part>\d*))?$"
_FLOAT_DIGITS: Final = 16  # decimals of fewer digits survive as floats: only residue needs so many
_RESIDUE_ULPS: Final = 8
_RESIDUE_MINOR: Final = 1e-3
_NOT_FINITE: Final = r"(?i)^[+-]?(nan|inf|infinity)$"
_INT64_MAX: Final = 2**63 - 1


def exponent_of(currency: str) -> int:
    """Decimals of an ISO 4217 currency."""
    return EXPONENTS.get(currency, DEFAULT_EXPONENT)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Units of the base currency per unit of each accepted currency, the base itself included, as exact fractions."""

    base_currency: str
    by_currency: dict[str, Fraction]

    @classmethod
    def of(cls, settings: IngestSettings) -> Rates:
        """Read RINGFENCE_RATES; raise SettingsError for a rate that is no positive decimal, a code that is no money."""
        by_currency = {settings.base_currency: Fraction(1)}
        for currency, text in settings.rates.items():
            by_currency[currency] = _rate(currency, text)
            if currency == settings.base_currency and by_currency[currency] != 1:
                raise SettingsError(f"RINGFENCE_RATES: the base currency {currency} has the rate 1, got {text!r}")
        for currency in by_currency:
            if currency in WITHOUT_MINOR_UNIT or not (len(currency) == 3 and currency.isascii() and currency.isupper()):
                raise SettingsError(f"RINGFENCE_RATES: expected ISO 4217 currencies with minor units, got {currency!r}")
        return cls(base_currency=settings.base_currency, by_currency=by_currency)

    @property
    def currencies(self) -> list[str]:
        return sorted(self.by_currency)

    def to_base(self, minor: Int64, currency: str) -> Int64:
        """Minor units of `currency` (0 to MAX_AMOUNT_MINOR) to minor units of the base currency, half to even.

        Results above MAX_AMOUNT_MINOR come back as MAX_AMOUNT_MINOR + 1.
        """
        scale = Fraction(10) ** (exponent_of(self.base_currency) - exponent_of(currency))
        factor = self.by_currency[currency] * scale
        if factor == 1 or not len(minor):
            return minor
        largest = max(int(minor.max()) * factor.numerator, 2 * factor.denominator)
        if largest <= _INT64_MAX:
            return np.minimum(_half_even(minor, factor), MAX_AMOUNT_MINOR + 1)
        converted = (_half_even_int(int(amount), factor) for amount in minor)
        return np.fromiter((min(amount, MAX_AMOUNT_MINOR + 1) for amount in converted), np.int64, len(minor))


def _rate(currency: str, text: str) -> Fraction:
    try:
        rate = Decimal(text)
    except InvalidOperation:
        rate = Decimal("NaN")
    if not rate.is_finite() or rate <= 0 or abs(rate.adjusted()) > 12:
        raise SettingsError(f"RINGFENCE_RATES: expected a positive decimal number for {currency}, got {text!r}")
    return Fraction(rate)


def _half_even(minor: Int64, factor: Fraction) -> Int64:
    whole, rest = np.divmod(minor * factor.numerator, factor.denominator)
    up = (2 * rest > factor.denominator) | ((2 * rest == factor.denominator) & (whole % 2 == 1))
    return whole + up  # type: ignore[no-any-return]


def _half_even_int(minor: int, factor: Fraction) -> int:
    return round(minor * factor)  # Fraction rounds half to even


def minor_units(field: str, raw: pa.Array, exponents: Int64, faults: Faults) -> Int64:
    """Amounts in major units to minor units, exactly; 0 where null or at fault.

    `exponents` has each row's number of decimals. Text and decimals are taken as written; a float is taken for the
    decimal with so many places that reads as this float. What float arithmetic leaves behind (5 * 17.13 is
    85.64999999999999) is taken off, in floats and in text that was made from them, and noted: up to 8 units in the last
    place, never more than a thousandth of a minor unit. Faults: not a finite number, negative, more decimals than the
    currency has, above MAX_AMOUNT_MINOR.
    """
    if pa.types.is_floating(raw.type):
        return _from_floats(field, raw, exponents, faults)
    return _from_text(field, as_text(field, raw, faults), exponents, faults)


def _from_floats(field: str, raw: pa.Array, exponents: Int64, faults: Faults) -> Int64:
    kind = np.float32 if pa.types.is_float16(raw.type) or pa.types.is_float32(raw.type) else np.float64
    amount = pc.fill_null(raw, 0.0).to_numpy(zero_copy_only=False).astype(kind)
    finite = np.isfinite(amount)
    faults.add(field, ~finite, "a finite number", raw)
    faults.add(field, finite & (amount < 0), "0 or more", raw)
    largest = (MAX_AMOUNT_MINOR // 10**exponents).astype(np.float64)
    too_large = finite & (amount > largest)
    _add_too_large(field, too_large, exponents, raw, faults)
    minor, exact, close = _nearest(np.where(finite & (amount > 0) & ~too_large, amount, kind(0)), exponents)
    _add_decimals(field, ~(exact | close), exponents, raw, faults)
    if kind is np.float32:
        faults.add(field, minor > 2**24, "an amount that 32-bit floats hold exactly (write 64-bit floats)", raw)
    faults.rounded |= close & ~exact
    return minor


def _nearest(amount: npt.NDArray[np.floating[Any]], exponents: Int64) -> tuple[Int64, Mask, Mask]:
    """The nearest minor units; which floats are those that this decimal reads as; which are a hair's breadth away."""
    scale = 10.0**exponents
    minor = np.rint(amount.astype(np.float64) * scale)
    # A division of whole numbers is rounded once, to the float nearest to the decimal: the very one its text reads as.
    decimal = (minor / scale).astype(amount.dtype)
    difference = np.abs(decimal - amount)
    close = (difference <= _RESIDUE_ULPS * np.spacing(amount)) & (difference * scale <= _RESIDUE_MINOR)
    return minor.astype(np.int64), difference == 0, close


def _from_text(field: str, text: pa.Array, exponents: Int64, faults: Faults) -> Int64:
    given = text
    faults.add(field, matches(text, _NOT_FINITE), "a finite number", given)
    strange = truth(pc.is_valid(text)) & ~matches(text, NUMBER)
    faults.add(field, strange, "a decimal number", given)
    text = _without_exponents(pc.if_else(pa.array(strange), None, text))
    parts = pc.extract_regex(text, _PLAIN)
    sign, whole, part = (pc.fill_null(pc.struct_field(parts, name), "") for name in ("sign", "whole", "part"))
    whole, part = pc.utf8_ltrim(whole, "0"), pc.utf8_rtrim(part, "0")
    nonzero = truth(pc.or_(pc.not_equal(whole, ""), pc.not_equal(part, "")))
    faults.add(field, truth(pc.equal(sign, "-")) & nonzero, "0 or more", given)
    too_large = truth(pc.greater(pc.utf8_length(whole), _MAX_WHOLE_DIGITS))
    _add_too_large(field, too_large, exponents, given, faults)
    decimals = pc.utf8_length(part).to_numpy()
    digits = pc.utf8_length(whole).to_numpy() + decimals
    residue = _Residue(text, ~too_large & (decimals > exponents) & (digits >= _FLOAT_DIGITS), exponents)
    _add_decimals(field, (decimals > exponents) & ~residue.rows, exponents, given, faults)
    faults.rounded |= residue.rows
    fit = ~too_large & (decimals <= exponents)
    minor = _joined(pc.if_else(pa.array(fit), whole, ""), pc.if_else(pa.array(fit), part, ""), exponents)
    minor[residue.rows] = residue.minor
    too_large = minor > MAX_AMOUNT_MINOR
    _add_too_large(field, too_large, exponents, given, faults)
    return np.where(too_large, 0, minor)


class _Residue:
    """Text of floats that are a hair's breadth from a decimal of the currency: which rows, and their minor units."""

    def __init__(self, text: pa.Array, candidates: Mask, exponents: Int64) -> None:
        self.rows = candidates.copy()
        floats = np.array([float(value) for value in text.filter(pa.array(candidates)).to_pylist()], np.float64)
        minor, _, close = _nearest(np.abs(floats), exponents[candidates])
        self.rows[candidates] = close
        self.minor = minor[close]


def _joined(whole: pa.Array, part: pa.Array, exponents: Int64) -> Int64:
    """Digits before and after the point (no more than the exponent) as one integer; above the limit, its successor."""
    before = _integers(whole)
    after = _integers(part)
    lengths = pc.utf8_length(part).to_numpy()
    fits = before <= MAX_AMOUNT_MINOR // 10**exponents
    minor = np.where(fits, before, 0) * 10**exponents
    minor = minor + after * 10 ** np.maximum(exponents - lengths, 0)
    return np.where(fits, minor, MAX_AMOUNT_MINOR + 1)


def _integers(digits: pa.Array) -> Int64:
    return pc.if_else(pc.equal(digits, ""), "0", digits).cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]


def _without_exponents(text: pa.Array) -> pa.Array:
    """Write 1.5e3 as 1500; beyond thirty digits, what stands for too large or too fine is enough."""
    scientific = matches(text, "[eE]")
    if not scientific.any():
        return text
    plain = text.to_pylist()
    for row in np.flatnonzero(scientific).tolist():
        number = Decimal(plain[row])
        if not number or abs(number.adjusted()) <= 30:
            plain[row] = f"{number:f}" if number else "0"
        else:
            plain[row] = "1" + "0" * 30 if number.adjusted() > 0 else "0." + "0" * 30 + "1"
    return pa.array(plain, pa.string())


def _add_too_large(field: str, bad: Mask, exponents: Int64, raw: pa.Array, faults: Faults) -> None:
    for exponent in np.unique(exponents[bad]).tolist():
        limit = MAX_AMOUNT_MINOR // 10**exponent
        faults.add(field, bad & (exponents == exponent), f"at most {limit} units", raw)


def _add_decimals(field: str, bad: Mask, exponents: Int64, raw: pa.Array, faults: Faults) -> None:
    for exponent in np.unique(exponents[bad]).tolist():
        expected = (
            f"at most {exponent} decimals, as the currency has" if exponent else "whole units, as the currency has"
        )
        faults.add(field, bad & (exponents == exponent), expected, raw)
