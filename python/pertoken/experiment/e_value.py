"""Evidence on a quantile from the rate of the tail: e-values by betting, valid at every look.

A pair of blocks gives ``over(b) - over(a)``: how many more values of b than of a were beyond a
threshold that was fixed before. Somebody who does not believe that b's tail is the heavier bets
against it: the wealth ``product of (1 + stake * difference)`` is then a supermartingale, which by
Ville's inequality ever reaches 1/alpha with a probability of at most alpha (Waudby-Smith and
Ramdas, "Estimating means of bounded random variables by betting"). Nothing is asked of the
distribution, nor of the dependence inside a block: a burst cannot count more than `most`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STAKES = 8
_LARGEST_STAKE = 0.9  # of what would lose everything at once
_FINEST = 0.002
_COARSENING = 1.09
_WIDEST = math.log(4.0)


def most_counted(values: int, level: float) -> int:
    """How many values of a block may count as over the threshold: rarely less than there are."""
    expected = values * (1.0 - level)
    return max(1, math.ceil(expected + 4.0 * math.sqrt(expected) + 1.0))


def stakes(most: int) -> Floats:
    """The stakes over which the wealth is averaged, each half the one before; shape (STAKES,).

    They are fixed, so that the wealth is monotone in the differences, and with it in the ratio
    that is bet against: one interval follows for all ratios.
    """
    return np.asarray(_LARGEST_STAKE / most * 0.5 ** np.arange(STAKES), dtype=np.float64)


def log_wealth(differences: Floats, most: int) -> Floats:
    """The log of the e-value after each pair, against "the mean difference is 0 or less".

    Args:
        differences: shape (..., pairs), each from -`most` to `most`.
        most: the bound.

    Returns:
        float64 of the same shape.
    """
    bets = np.log1p(differences[..., None] * stakes(most))
    return averaged(np.cumsum(bets, axis=-2))


def averaged(log_bets: Floats) -> Floats:
    """The log of the mean wealth over the last axis, from logs, without overflow."""
    highest = log_bets.max(axis=-1)
    return np.asarray(highest + np.log(np.exp(log_bets - highest[..., None]).mean(axis=-1)))


def ratio_grid(ratio: float) -> Floats:
    """The ratios that are bet against, increasing, 1 and `ratio` exactly among them.

    From a quarter to four, 0.2 % apart near 1 and up to 12 % at the ends.
    """
    steps = np.cumsum(_FINEST * _COARSENING ** np.arange(60))
    steps = steps[steps < _WIDEST]
    return np.unique(np.concatenate([np.exp(-steps), [1.0, ratio], np.exp(steps)]))


class QuantileEvidence:
    """E-values against every ratio of b's quantile to a's, from the pairs so far.

    Args:
        threshold: about the quantile of a, known before the first pair.
        level: of the quantile, such as 0.99.
        values: how many values of each variant a pair has.
        ratio: a ratio that shall be on the grid.
    """

    def __init__(self, threshold: float, level: float, values: int, ratio: float) -> None:
        self._threshold = threshold
        self._most = most_counted(values, level)
        self._stakes = stakes(self._most)
        self.ratios = ratio_grid(ratio)
        self._above = np.zeros((len(self.ratios), STAKES))  # log wealth against "not above"
        self._below = np.zeros_like(self._above)
        self._over_b = np.zeros(len(self.ratios), dtype=np.int64)
        self.values = 0  # of a
        self.over = 0  # of these, beyond the threshold

    def add(self, a: Floats, b: Floats) -> None:
        """Adds the values of one pair; as many of a as of b."""
        over_a = int((a > self._threshold).sum())
        over_b = len(b) - np.searchsorted(np.sort(b), self._threshold * self.ratios, side="right")
        difference = np.minimum(over_b, self._most) - min(over_a, self._most)
        bets = difference[:, None] * self._stakes
        self._above += np.log1p(bets)
        self._below += np.log1p(-bets)
        self.values += len(a)
        self.over += over_a
        self._over_b += over_b

    def log_e_values(self, ratio: float) -> tuple[float, float]:
        """Logs of the e-values against "not above" and "not below" a ratio of the grid."""
        place = int(np.searchsorted(self.ratios, ratio))
        return float(averaged(self._above[place])), float(averaged(self._below[place]))

    def interval(self, alpha: float) -> tuple[float, float]:
        """The ratios that are not refuted, half of `alpha` on each side; 0 and infinity if none."""
        enough = math.log(2.0 / alpha)
        above = np.flatnonzero(averaged(self._above) >= enough)
        below = np.flatnonzero(averaged(self._below) >= enough)
        low = float(self.ratios[above[-1]]) if len(above) else 0.0
        high = float(self.ratios[below[0]]) if len(below) else math.inf
        return low, high

    def estimate(self) -> float:
        """The ratio at which as many values of b as of a are beyond; NaN when none of a is."""
        if not self.over:
            return math.nan
        first, last = np.searchsorted(-self._over_b, [-self.over, -self.over + 1])
        return float(self.ratios[min(first, len(self.ratios) - 1) : max(last, first + 1)].mean())
