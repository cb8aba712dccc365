"""Money is exact: decimals to minor units, and currencies to the base currency."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from graph_features.contracts import MAX_AMOUNT_MINOR
from graph_features.errors import SettingsError
from graph_features.ingest.faults import Faults
from graph_features.ingest.money import EXPONENTS, Rates, exponent_of, minor_units
from graph_features.settings import IngestSettings

EXPONENT = st.sampled_from([0, 2, 3, 4])
MINOR = st.integers(0, MAX_AMOUNT_MINOR)


def convert(values: list, exponent: int, type_: pa.DataType | None = None) -> tuple[list[int | None], Faults]:
    """Minor units per value, None where the value is refused."""
    faults = Faults(len(values))
    minor = minor_units("amount", pa.array(values, type_), np.full(len(values), exponent), faults)
    return [int(amount) if good else None for amount, good in zip(minor, faults.good, strict=True)], faults


def written(minor: int, exponent: int) -> str:
    return f"{Decimal(minor).scaleb(-exponent):f}"


@given(MINOR, EXPONENT)
def test_text_and_decimals_are_taken_exactly(minor: int, exponent: int) -> None:
    """Every amount written with its currency's decimals comes back as the same number of minor units."""
    text = written(minor, exponent)
    forms = [text, f"+{text}", f"000{text}", f"{Decimal(text):E}", text + ("000" if "." in text else ".000")]
    assert convert(forms, exponent)[0] == [minor] * len(forms)
    assert convert([Decimal(text)], exponent, pa.decimal128(38, 6))[0] == [minor]


@given(MINOR, EXPONENT)
def test_floats_that_read_as_a_decimal_are_that_decimal(minor: int, exponent: int) -> None:
    """A float is accepted as the decimal that it was written as, as a number and as its shortest text."""
    amount = float(written(minor, exponent))
    expected, faults = convert([amount], exponent)
    assert expected == [minor]
    assert not faults.rounded.any()
    assert convert([repr(amount)], exponent)[0] == [minor]


@given(st.integers(0, 10**9), st.integers(1, 9), EXPONENT)
def test_more_decimals_than_the_currency_has_are_refused(minor: int, digit: int, exponent: int) -> None:
    """One non-zero digit too many is a fault, in text and in floats, never rounded away."""
    text = written(minor, exponent) + ("" if exponent else ".") + str(digit)
    assert convert([text], exponent)[0] == [None]
    assert convert([float(text)], exponent)[0] == [None]


@given(st.text(alphabet="0123456789.+-eE ,naif", max_size=24))
@example("1e999999999")
@example("-0.0")
@example(".")
def test_any_text_is_the_amount_that_decimal_reads_or_a_fault(text: str) -> None:
    """Whatever is accepted is what Decimal reads, to the minor unit, and never negative, infinite or too large."""
    (minor,), faults = convert([text], 2)
    if minor is None or text == "":
        return
    exact = Decimal(text) * 100
    assert 0 <= minor <= MAX_AMOUNT_MINOR
    assert abs(exact - minor) <= (Decimal("0.001") if faults.rounded[0] else 0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("-0.01", "0 or more"),
        ("nan", "finite"),
        ("-Infinity", "finite"),
        ("1,50", "decimal number"),
        ("12 EUR", "decimal number"),
        ("0x10", "decimal number"),
        ("10000000000000.01", "at most 10000000000000 units"),
        ("1e400", "at most 10000000000000 units"),
        ("1e-400", "at most 2 decimals"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (-0.01, "0 or more"),
        (1e300, "at most"),
        (1e-300, "at most 2 decimals"),
        (0.015, "at most 2 decimals"),
        (10**18, "at most"),
    ],
)
def test_what_is_no_amount_is_named(value: object, reason: str) -> None:
    """Each kind of bad amount is refused with what was expected."""
    (minor,), faults = convert([value], 2)
    assert minor is None
    assert reason in faults.found[0].reason


def test_zero_is_an_amount() -> None:
    """Zero is accepted however it is written."""
    assert convert(["0", "0.00", "-0", ".0", "0e9"], 2)[0] == [0] * 5
    assert convert([0.0, -0.0], 2)[0] == [0, 0]


@given(st.integers(1, 10**7), st.sampled_from([3, 5, 7, 10]), st.sampled_from([2, 3]))
def test_the_residue_of_float_arithmetic_is_taken_off_and_noted(minor: int, factor: int, exponent: int) -> None:
    """A product of a decimal float is the decimal it stands for, as float and as text, and counted when it was off."""
    product = float(written(minor, exponent)) * factor
    is_off = product != float(written(minor * factor, exponent))
    for value in (product, repr(product)):
        (got,), faults = convert([value], exponent)
        assert got == minor * factor
        assert bool(faults.rounded[0]) == is_off


def test_small_floats_must_say_what_they_mean() -> None:
    """32-bit floats are taken for decimals while they hold them exactly, and refused beyond."""
    assert convert([12.34, 0.1], 2, pa.float32())[0] == [1234, 10]
    assert convert([200_000.5], 2, pa.float32())[0] == [None]


def test_whole_numbers_are_major_units() -> None:
    """Integer columns hold whole units of the currency."""
    assert convert([3], 2, pa.int32())[0] == [300]
    assert convert([3], 0, pa.int64())[0] == [3]


def test_exponents_of_currencies() -> None:
    """Currencies without cents, with mills, and with four decimals are known; others have two decimals."""
    assert [exponent_of(code) for code in ("JPY", "KRW", "KWD", "TND", "CLF", "EUR", "USD")] == [0, 0, 3, 3, 4, 2, 2]
    assert set(EXPONENTS.values()) == {0, 3, 4}
    assert len(EXPONENTS) == 26


RATE = st.decimals("0.000001", 100_000, places=6)


@given(st.lists(MINOR, min_size=1, max_size=5), RATE, st.sampled_from(["USD", "JPY", "KWD", "CLF"]))
def test_conversion_rounds_half_to_even_once(minors: list[int], rate: Decimal, currency: str) -> None:
    """Minor units of the base currency equal exact decimal arithmetic, whatever the size; too large is marked so."""
    rates = Rates.of(IngestSettings(rates={currency: str(rate)}))
    got = rates.to_base(np.array(minors, np.int64), currency).tolist()
    with localcontext() as context:
        context.prec = 60
        exact = [Decimal(minor).scaleb(2 - exponent_of(currency)) * rate for minor in minors]
        expected = [int(amount.to_integral_value(ROUND_HALF_EVEN)) for amount in exact]
    assert got == [min(amount, MAX_AMOUNT_MINOR + 1) for amount in expected]


def test_ties_go_to_the_even_neighbour() -> None:
    """Half a cent up or down by evenness: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2."""
    rates = Rates.of(IngestSettings(rates={"USD": "0.5"}))
    assert rates.to_base(np.array([1, 3, 5, 7]), "USD").tolist() == [0, 2, 2, 4]


@pytest.mark.parametrize(
    "rates",
    [
        {"USD": "0"},
        {"USD": "-1"},
        {"USD": "x"},
        {"USD": "NaN"},
        {"usd": "1"},
        {"XAU": "1"},
        {"EUR": "2"},
        {"USD": "1e90"},
    ],
)
def test_bad_rates_are_refused(rates: dict[str, str]) -> None:
    """A rate that is no positive decimal, or of what is no money, stops the program and names the setting."""
    with pytest.raises(SettingsError, match="RINGFENCE_RATES"):
        Rates.of(IngestSettings(rates=rates))
