"""Buckets of exponential histograms by exact arithmetic: integers of Python, no logarithm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pertoken import Histogram


def exact_index(value: float, scale: int) -> int:
    """The bucket i with ``base**i < value <= base**(i + 1)``, for ``value > 0``."""
    mantissa, denominator = value.as_integer_ratio()
    exponent = 1 - denominator.bit_length()
    if scale >= 0:
        # base**(i + 1) >= value when 2**(i + 1) >= value**(2**scale), the power of an integer.
        power = mantissa ** (1 << scale)
        return (power - 1).bit_length() + (exponent << scale) - 1
    octave = (mantissa - 1).bit_length() + exponent
    return -(-octave // (1 << -scale)) - 1


def boundary_mantissa(j: int, scale: int, bits: int) -> int:
    """``2 ** (j / 2**scale)`` rounded down to `bits` bits after the point, less the leading 1."""
    power = 1 << (j + (bits << scale))
    for _ in range(scale):
        power = math.isqrt(power)
    return power - (1 << bits)


def values_at_boundaries(dtype: type[np.floating], scale: int) -> NDArray[np.floating]:
    """Every power of the base in the normal range, rounded down, and its two neighbours.

    With them the powers of two among the subnormals, and the ends of the range.
    """
    info = np.finfo(dtype)
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    mantissas = [boundary_mantissa(j, scale, info.nmant) for j in range(1 << scale)]
    exponents = range(1, (1 << info.iexp) - 1)
    bits = {(e << info.nmant) + m for e in exponents for m in mantissas}
    bits |= {1 << n for n in range(info.nmant)}
    bits |= {b + beside for b in bits for beside in (-1, 1)} - {0}
    largest = int(np.array(info.max, dtype).view(unsigned))
    return np.array(sorted(b for b in bits | {largest} if b <= largest), unsigned).view(dtype)


def counts_by_index(values: Iterable[float], scale: int) -> tuple[Counter[int], Counter[int]]:
    """How many values are in each bucket: of those above 0, and of those below by their size."""
    sides: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for value in values:
        if value and math.isfinite(value):
            sides[value < 0][exact_index(abs(value), scale)] += 1
    return sides


def counts_of(histogram: Histogram) -> tuple[Counter[int], Counter[int]]:
    """The same of a histogram, with its filled buckets only."""
    return tuple(
        Counter({side.offset + k: int(n) for k, n in enumerate(side.counts) if n})
        for side in (histogram.positive, histogram.negative)
    )  # type: ignore[return-value]
