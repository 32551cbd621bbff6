"""Weighted percentiles and means of durations.

The method, used for every percentile of this package: the q-th percentile is the smallest observed
value at or below which at least the share q of the total weight lies (the inverse of the empirical
distribution function, also called nearest rank). It is always a value that was observed. A weight
is the inverse of the probability that the value was recorded; what has weight 0 was kept because it
was unusual, and does not count.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from pertoken.table import Array

# A sum of weights such as 1/0.3 is not exact: this much of the total is rounding.
_ROUNDING = 1e-12
# Beyond this a weight, which may come from a damaged file, would turn a sum into infinity.
_LARGEST_WEIGHT = 1e12


@dataclass(frozen=True)
class Distribution:
    """Count, mean, percentiles and maximum of durations, in nanoseconds."""

    count: int
    mean_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int

    @classmethod
    def of(cls, values_ns: Array, weights: Array | None = None) -> Distribution | None:
        """Describe durations; None when there are none with a weight.

        Args:
            values_ns: int64 or float64, shape (n,), nanoseconds.
            weights: float64, shape (n,); 1 each when not given. Negative, not finite and absurdly
                large or small ones count as 0.
        """
        used = usable_weights(weights, len(values_ns))
        kept = used > 0
        if not kept.any():
            return None
        values_ns, used = values_ns[kept], used[kept]
        low, middle, high = percentiles(values_ns, (0.5, 0.9, 0.99), used)
        return cls(
            count=len(values_ns),
            mean_ns=round(float(np.average(values_ns, weights=used))),
            p50_ns=round(low),
            p90_ns=round(middle),
            p99_ns=round(high),
            max_ns=round(float(values_ns.max())),
        )

    def as_dict(self) -> dict[str, int]:
        """Give the fields as plain data."""
        return asdict(self)


def percentiles(
    values: Array, shares: tuple[float, ...], weights: Array | None = None
) -> list[float]:
    """Find weighted percentiles by nearest rank (see the module).

    Args:
        values: shape (n,), n at least 1.
        shares: each in (0, 1].
        weights: float64, shape (n,), with a positive sum; 1 each when not given.

    Returns:
        One value for each share.
    """
    used = usable_weights(weights, len(values))
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(used[order])
    total = float(cumulative[-1])
    wanted = np.asarray(shares) * total - _ROUNDING * total
    places = np.minimum(np.searchsorted(cumulative, wanted), len(values) - 1)
    return [value.item() for value in values[order][places]]


def usable_weights(weights: Array | None, count: int) -> Array:
    """Give float64 weights of shape (count,), with 0 for those that no sampling can have given."""
    if weights is None:
        return np.ones(count)
    return np.where((weights >= 1 / _LARGEST_WEIGHT) & (weights <= _LARGEST_WEIGHT), weights, 0.0)
