"""The autocorrelation time of a series, and the length of a block that outlasts it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_WINDOW = 5.0  # of autocorrelation times: Sokal's rule for where the sum may end
_TIMES = 12.0
_FEWEST_TO_TELL = 8  # values of a series
_FEWEST_VALUES = 4


def autocorrelation_time(values: NDArray[np.float64]) -> float:
    """The integrated autocorrelation time of a series, in values: 1 when they are independent.

    The sum ``1 + 2 (c1 + c2 + ...)`` of correlations, ended by Sokal's rule, at the first lag of
    five times itself. Series are ranked first: one extreme value would hide the rest. A linear
    trend is taken out: it cancels in ABBA blocks of any length.

    Args:
        values: shape (count,), in the order of measurement.
    """
    count = len(values)
    if count < _FEWEST_TO_TELL:
        return 1.0
    at = np.arange(count) - (count - 1) / 2.0
    centred = ranks(values)
    centred -= centred.mean()
    centred -= at * (centred @ at) / (at @ at)
    if (centred @ centred) < 1e-9 * count:  # a trend, or all the same, and nothing else
        return 1.0
    spectrum = np.fft.rfft(centred, 2 * count)
    covariance = np.fft.irfft(spectrum * np.conj(spectrum))[:count]
    times = 2.0 * np.cumsum(covariance / covariance[0]) - 1.0
    ends = np.flatnonzero(np.arange(count) >= _WINDOW * times)
    return max(1.0, float(times[ends[0]] if len(ends) else times.max()))


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1 for the smallest; of shape (count,), as the values.

    Values that are equal share their rank, so that a series of two values stays one.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2.0
    return shared[inverse]


def block_length(time: float, values: int) -> int:
    """Calls in a block: 12 times what the autocorrelation time is beyond 1, and at least 4 values.

    Args:
        time: the autocorrelation time, in calls.
        values: how many values a call gives.
    """
    return max(math.ceil(_FEWEST_VALUES / values), math.ceil(_TIMES * (time - 1.0)))
