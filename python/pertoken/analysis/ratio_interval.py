"""How far an estimate from sampled steps may be off: the interval of a ratio of weighted sums."""

from __future__ import annotations

import numpy as np

from pertoken.table import Array

_Z = 1.959963984540054  # 97.5 % of a normal distribution lie below
# Intervals of fewer effective steps would hold the truth too seldom. These are the degrees of
# freedom: as many as the steps where all have the same part, fewer where some outweigh the others.
_FEWEST_STEPS = 10


def half_width(part: Array, residual: Array, left_out: Array) -> float | None:
    """Half of the interval of 95 % of a ratio; None with fewer than ten effective steps.

    Of 1,000 steps there may be fewer, where a few have large weights, or most of the denominator.

    The variance is that of the ratio estimator under sampling of steps (Särndal, Swensson and
    Wretman, *Model Assisted Survey Sampling*, 5.6): the sum of `weight (weight - 1)` times the
    square of what a step's numerator is off. Residuals are taken against the estimate of all other
    steps, as a step that makes most of it lies near it. Student's t stands for the normal one, by
    the first term of its expansion, with the degrees of freedom of Satterthwaite.

    Args:
        part: of each step, its part of the denominator, times its weight; float64, shape (steps,).
        residual: its numerator less ratio times denominator, times its weight.
        left_out: the probability with which it was not in the sample, 1 - 1/weight; 0 where it
            was certain. Where of each block one is sampled and residuals may cancel out within it,
            that is too little, and 1 is an upper bound.

    Returns:
        0 where no step was left out.
    """
    sampled = left_out > 0
    if not sampled.any():
        return 0.0
    others = float(part.sum()) - part[sampled]
    left_out = left_out[sampled]
    share = left_out * part[sampled] ** 2
    if others.min() <= 0 or not share.any():
        return None
    freedom = float(share.sum() ** 2 / (share**2).sum())
    if freedom < _FEWEST_STEPS:
        return None
    t = _Z + (_Z**3 + _Z) / (4 * freedom)
    return t * float(np.sqrt((left_out * (residual[sampled] / others) ** 2).sum()))
