"""Evidence on a quantile from the rate of the tail: e-values by betting, valid at every look.

A pair of blocks gives ``over(b) - over(a)``: how many more values of b than of a were beyond a
threshold that was fixed before. Somebody who does not believe that b's tail is the heavier bets
against it: the wealth ``product of (1 + stake * difference)`` is then a supermartingale, which by
Ville's inequality ever reaches 1/alpha with a probability of at most alpha (Waudby-Smith and
Ramdas, "Estimating means of bounded random variables by betting"). Nothing is asked of the
distribution. A count is cut at `most`, so that stakes can be large: what is tested are the counts
that were cut, and where the variants' bursts differ they say something else than the quantiles.

The differences may change meanwhile. With their expectations m given all before, the product of
``(1 + stake * difference) / (1 + stake * m)`` is a martingale that starts at 1, and the product of
``1 + stake * m`` is at most 1 while the sum of m is at most 0. So by the same inequality the wealth
at any look is evidence on the mean of m so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STAKES = 8
_LARGEST_STAKE = 0.9  # of what would lose everything at once
_FINEST = 0.002
_COARSENING = 1.09
_WIDEST = math.log(4.0)
_TIED_PARTS = 2.0**20  # shares of ties are multiples of this part: sums of them are exact
_BURST_ROOM = 1.5  # over the largest count of the pilot, where that is a burst


@dataclass(frozen=True)
class Threshold:
    """A quantile of a, and what share of a's values beyond it is.

    Attributes:
        value: the quantile.
        tied: what a value that equals it counts, from 0 to 1: so that the share is that of the
            level where many values are the same.
    """

    value: float
    tied: float = 0.0

    @classmethod
    def of(cls, pilot: Floats, level: float) -> Threshold:
        """That of a pilot's values, at a level such as 0.99."""
        value = float(np.quantile(pilot, level))
        equal = int((pilot == value).sum())
        if not equal:
            return cls(value)
        missing = len(pilot) * (1.0 - level) - int((pilot > value).sum())
        share = min(max(missing / equal, 0.0), 1.0)
        return cls(value, round(share * _TIED_PARTS) / _TIED_PARTS)

    def counts(self, values: Floats) -> Floats:
        """What each of these values counts."""
        return np.asarray((values > self.value) + self.tied * (values == self.value))

    def largest_count(self, pilot: Floats, values: int) -> float:
        """The largest count of so many values in a row of a pilot."""
        return float(np.add.reduceat(self.counts(pilot), range(0, len(pilot), values)).max())


def most_counted(values: int, level: float, largest: float = 0.0) -> int:
    """How many of a pair's values of one variant may count: rarely less than are beyond.

    Args:
        values: of one variant in a pair.
        level: of the quantile, such as 0.99.
        largest: the largest count of so many values of either variant in the pilot. Beyond four
            standard deviations of independent values it tells of bursts, and larger ones will come.

    Returns:
        At least 1, and no more than `values`.
    """
    expected = values * (1.0 - level)
    most = math.ceil(expected + 4.0 * math.sqrt(expected) + 1.0)
    if largest > most:
        most = math.ceil(_BURST_ROOM * largest)
    return min(most, values)


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

    b's quantile is above t only if its values are over t more often than the level allows, and
    below only if they reach t less often. So a value of b that equals t counts nothing where "not
    above" is bet against, and whole where "not below" is: ties refute nothing that is true.

    Args:
        threshold: about the quantile of a, known before the first pair.
        most: how many values of each variant of a pair may count.
        ratio: a ratio that shall be on the grid.
    """

    def __init__(self, threshold: Threshold, most: int, ratio: float) -> None:
        self._threshold = threshold
        self.most = most
        self._stakes = stakes(most)
        self.ratios = ratio_grid(ratio)
        self._above = np.zeros((len(self.ratios), STAKES))  # log wealth against "not above"
        self._below = np.zeros_like(self._above)
        self._counted_a = 0.0  # cut at `most` in each pair, as the next two
        self._beyond = np.zeros(len(self.ratios), dtype=np.int64)  # of b, over each ratio
        self._reached = np.zeros_like(self._beyond)  # the same, with those that equal it
        self._all_beyond = np.zeros_like(self._beyond)  # not cut
        self.values = 0  # of a
        self.over = 0.0  # of these, beyond the threshold; not cut

    def add(self, a: Floats, b: Floats) -> None:
        """Adds the values of one pair; as many of a as of b."""
        over = float(self._threshold.counts(a).sum())
        counted = min(over, self.most)
        ordered, at = np.sort(b), self._threshold.value * self.ratios
        all_beyond = len(b) - np.searchsorted(ordered, at, side="right")
        beyond = np.minimum(all_beyond, self.most)
        reached = np.minimum(len(b) - np.searchsorted(ordered, at, side="left"), self.most)
        self._above += np.log1p((beyond - counted)[:, None] * self._stakes)
        self._below += np.log1p((counted - reached)[:, None] * self._stakes)
        self.values += len(a)
        self.over += over
        self._counted_a += counted
        self._beyond += beyond
        self._reached += reached
        self._all_beyond += all_beyond

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
        """The ratio at which b counts as much as a, which no interval leaves out.

        NaN when nothing of a counts, and when it may lie beyond the grid.
        """
        first, end = self._balanced()
        if not self.over or first == 0 or end >= len(self.ratios):
            return math.nan
        return float(self.ratios[first:end].mean())

    def cut_shares(self) -> tuple[float, float]:
        """The share of what is beyond the quantile that did not count, of a and of b."""
        place = min(self._balanced()[0], len(self.ratios) - 1)
        all_beyond, beyond = int(self._all_beyond[place]), int(self._beyond[place])
        of_a = 1.0 - self._counted_a / self.over if self.over else 0.0
        return of_a, 1.0 - beyond / all_beyond if all_beyond else 0.0

    def _balanced(self) -> tuple[int, int]:
        """The first and the end of the ratios where b counts as a does; at least one."""
        first = int(np.searchsorted(-self._beyond, -self._counted_a, side="left"))
        end = int(np.searchsorted(-self._reached, -self._counted_a, side="right"))
        return first, max(end, first + 1)
