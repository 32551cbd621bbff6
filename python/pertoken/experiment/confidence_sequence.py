"""A confidence sequence for the ratio of two means: an interval that holds at every look at once.

The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas
("Time-uniform central limit theory and asymptotic confidence sequences"), turned into one of a
ratio by Fieller's theorem: a ratio r is in the interval while the mean of ``b - r a`` may be 0.
Everything here works on arrays of any shape, so that simulations run the code of the product.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_PAIRS = 100  # the guarantee is asymptotic: no verdict before

Floats = NDArray[np.float64]


def radius(count: ArrayLike, alpha: float, expected: float) -> Floats:
    """Half the width of the interval of a mean, in standard deviations of one value.

    Args:
        count: values seen so far, at least 1; any shape.
        alpha: probability that the mean is outside at any look, both sides together.
        expected: the count at which the interval is to be the narrowest; fixed beforehand.

    Returns:
        float64 of the shape of `count`.
    """
    seen = np.asarray(count, dtype=np.float64)
    log = -2.0 * np.log(alpha)
    rate = (log + np.log(log) + 1.0) / expected
    grown = seen * rate + 1.0
    squared = 2.0 * grown / (seen * seen * rate) * np.log(np.sqrt(grown) / alpha)
    return np.asarray(np.sqrt(squared))


@dataclass
class PairSums:
    """Sums over pairs (a, b) in their order. The fields are floats, or arrays of one shape.

    All but the first pair are of the differences from that pair: sums of squares about zero would
    lose the variance of values that are large and differ by little. The last three are of
    neighbours: pair i and pair i + 1.
    """

    count: Any = 0
    first_a: Any = 0.0
    first_b: Any = 0.0
    a: Any = 0.0
    b: Any = 0.0
    aa: Any = 0.0
    ab: Any = 0.0
    bb: Any = 0.0
    next_aa: Any = 0.0
    next_ab: Any = 0.0  # a of one pair with b of its neighbour, in both orders
    next_bb: Any = 0.0
    _last: tuple[float, float] = field(default=(0.0, 0.0), init=False)

    @classmethod
    def running(cls, a: Floats, b: Floats) -> PairSums:
        """The sums after each pair, of values of shape (..., pairs)."""

        def neighbours(first: Floats, second: Floats) -> Floats:
            products = np.zeros_like(a)
            products[..., 1:] = first[..., :-1] * second[..., 1:]
            return np.cumsum(products, axis=-1)

        first_a, first_b = a[..., :1], b[..., :1]
        a, b = a - first_a, b - first_b
        return cls(
            count=np.arange(1.0, a.shape[-1] + 1.0),
            first_a=first_a,
            first_b=first_b,
            a=np.cumsum(a, axis=-1),
            b=np.cumsum(b, axis=-1),
            aa=np.cumsum(a * a, axis=-1),
            ab=np.cumsum(a * b, axis=-1),
            bb=np.cumsum(b * b, axis=-1),
            next_aa=neighbours(a, a),
            next_ab=neighbours(a, b) + neighbours(b, a),
            next_bb=neighbours(b, b),
        )

    def add(self, a: float, b: float) -> None:
        """Adds one pair; the fields are floats."""
        if not self.count:
            self.first_a, self.first_b = a, b
        a, b = a - self.first_a, b - self.first_b
        self.count += 1
        self.a += a
        self.b += b
        self.aa += a * a
        self.ab += a * b
        self.bb += b * b
        last_a, last_b = self._last  # of the first pair 0, as all differences from it
        self.next_aa += last_a * a
        self.next_ab += last_a * b + last_b * a
        self.next_bb += last_b * b
        self._last = (a, b)

    @property
    def mean_a(self) -> Any:
        """The mean of a; at least one pair must be there."""
        return self.first_a + self.a / self.count

    @property
    def mean_b(self) -> Any:
        """The mean of b, likewise."""
        return self.first_b + self.b / self.count


def ratio_interval(sums: PairSums, alpha: float, expected: float) -> tuple[Floats, Floats]:
    """The ratio of the mean of b to that of a, from below and from above.

    The variance is raised by the covariance of neighbouring pairs where that is positive: blocks
    that were chosen too short widen the interval.

    It is the interval of this look alone. Where the means change meanwhile, it is that of the
    ratio of the means so far: the sequences hold for the running mean of expectations (their
    Lyapunov-type form, for means and variances that change).

    Args:
        sums: of pairs whose values are 0 or more; at least one.
        alpha: probability that the ratio is outside at any look.
        expected: as `radius` takes it.

    Returns:
        Two float64 arrays of the shape of the sums; 0 and infinity where nothing is known.
    """
    count = np.asarray(sums.count, dtype=np.float64)
    mean_a, mean_b = np.asarray(sums.mean_a), np.asarray(sums.mean_b)
    of_a, of_b = sums.a / count, sums.b / count  # means of the differences from the first pair
    of_one = np.maximum(count - 1.0, 1.0)
    var_a = (sums.aa - count * of_a * of_a) / of_one
    covariance = (sums.ab - count * of_a * of_b) / of_one
    var_b = (sums.bb - count * of_b * of_b) / of_one
    # Both orders of neighbours, as the variance of a mean has them.
    next_a = 2.0 * (sums.next_aa - of_one * of_a * of_a) / of_one
    next_ab = (sums.next_ab - 2.0 * of_one * of_a * of_b) / of_one
    next_b = 2.0 * (sums.next_bb - of_one * of_b * of_b) / of_one
    ratio = np.where(mean_a > 0.0, mean_b / np.where(mean_a > 0.0, mean_a, 1.0), 1.0)
    correlated = next_b - 2.0 * ratio * next_ab + ratio * ratio * next_a > 0.0
    squared = radius(count, alpha, expected) ** 2
    var_a = squared * (var_a + np.where(correlated, next_a, 0.0))
    covariance = squared * (covariance + np.where(correlated, next_ab, 0.0))
    var_b = squared * (var_b + np.where(correlated, next_b, 0.0))
    # (mean_b - r mean_a)^2 <= var_b - 2 r covariance + r^2 var_a, solved for r = ratio + x, so
    # that nothing large cancels: (x mean_a)^2 <= at_ratio + 2 x slope + x^2 var_a.
    at_ratio = np.maximum(var_b - 2.0 * ratio * covariance + ratio * ratio * var_a, 0.0)
    slope = ratio * var_a - covariance
    square = mean_a * mean_a - var_a
    root = np.sqrt(np.maximum(slope * slope + square * at_ratio, 0.0))
    known = (square > 0.0) & (count > 1.0)
    divisor = np.where(known, square, 1.0)
    low = np.where(known, np.maximum(ratio + (slope - root) / divisor, 0.0), 0.0)
    high = np.where(known, ratio + (slope + root) / divisor, np.inf)
    return low, high
