"""The length of blocks that narrows a mean's interval soonest, where noise meets both alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pertoken.experiment.autocorrelation import ranks

_FEWEST_PAIRS = 8  # of a length, in the pilot, to say what their variance is
_SWITCHES = 3.0  # of a pair: its two blocks in the middle are one


def quickest_block(series: Sequence[NDArray[np.float64]], switch: float, longest: int) -> int:
    """Calls in a block, a power of two.

    A pair's contrast is that of the means of its outer blocks with the inner ones. Its variance,
    times what a pair takes, is what the squared width of an interval is after a given time. It is
    that of ranks, so that one extreme value does not decide.

    Args:
        series: what the calls of each variant gave, in the order of measurement; each of shape
            (calls,).
        switch: what it takes to begin a block besides its calls, in calls.
        longest: the most calls a block may have.
    """
    best, best_width = 1, math.inf
    length = 1
    while length <= longest:
        contrasts = [_contrasts(ranks(values), length) for values in series]
        if min(map(len, contrasts)) < _FEWEST_PAIRS * length:
            break
        variance = float(np.mean([np.mean(of * of) for of in contrasts]))
        width = variance * (4.0 * length + _SWITCHES * switch)
        if width < best_width:
            best, best_width = length, width
        length *= 2
    return best


def _contrasts(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Of every four blocks in a row, wherever they begin; empty where there are not so many."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    blocks = sums[length:] - sums[:-length]
    count = len(values) - 4 * length + 1
    if count < 1:
        return np.empty(0)
    first, second, third, fourth = (
        blocks[i * length : i * length + count] / length for i in range(4)
    )
    contrasts: NDArray[np.float64] = first - second - third + fourth
    return contrasts
