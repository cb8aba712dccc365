"""Sums of squares in 128 bits, so that a variance of amounts up to 10^15 is exact before it becomes a float."""

from __future__ import annotations

from typing import Any

import numpy as np

from graph_features.kernels.compiled import compiled

# Unsigned 128-bit numbers are (high, low) pairs of uint64. Numba turns uint64 mixed with int64 into float64, so every
# operand below is cast first.
_LOW_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@compiled
def multiply(a: Any, b: Any) -> Any:
    """Return the (high, low) product of two uint64."""
    a_high, a_low = a >> _HALF, a & _LOW_MASK
    b_high, b_low = b >> _HALF, b & _LOW_MASK
    low = a_low * b_low
    middle = a_high * b_low + (low >> _HALF)
    middle_low = (middle & _LOW_MASK) + a_low * b_high
    high = a_high * b_high + (middle >> _HALF) + (middle_low >> _HALF)
    return high, (middle_low << _HALF) | (low & _LOW_MASK)


@compiled
def add(high: Any, low: Any, other_high: Any, other_low: Any) -> Any:
    """Return the sum of two unsigned 128-bit numbers."""
    total = low + other_low
    carry = np.uint64(1) if total < low else np.uint64(0)
    return high + other_high + carry, total


@compiled
def subtract(high: Any, low: Any, other_high: Any, other_low: Any) -> Any:
    """Return the difference of two unsigned 128-bit numbers, the first not below the second."""
    borrow = np.uint64(1) if low < other_low else np.uint64(0)
    return high - other_high - borrow, low - other_low


@compiled
def square(value: Any) -> Any:
    """Return the (high, low) square of an int64."""
    magnitude = np.uint64(abs(value))
    return multiply(magnitude, magnitude)


@compiled
def squared_deviations(count: Any, total: Any, high: Any, low: Any) -> Any:
    """Return the sum of squared deviations from the mean of `count` > 0 integers: float64, a few ulp.

    `total` is their int64 sum and (high, low) the sum of their squares. Deviations are taken from the integer q nearest
    to the mean, where all is exact: sum (x - q)^2 = sum x^2 - q (total + r) with r = total - q count and
    |r| <= count / 2. What is left, r^2 / count, is at most half of it, so nothing cancels in floats.
    """
    nearest = total // count
    rest = total - nearest * count
    if 2 * rest > count:
        nearest += 1
        rest -= count
    shift_high, shift_low = multiply(np.uint64(abs(nearest)), np.uint64(abs(total + rest)))
    high, low = subtract(high, low, shift_high, shift_low)
    return (float(high) * 18446744073709551616.0 + float(low)) - float(rest) * float(rest) / float(count)
