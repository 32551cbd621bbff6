"""What is known of one metric: gathered pair by pair, and told as an `Estimate` at any time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pertoken.experiment.confidence_sequence import MIN_PAIRS, PairSums, ratio_interval
from pertoken.experiment.e_value import QuantileEvidence, Threshold, most_counted
from pertoken.experiment.plan import Metric, Plan, Verdict

Floats = NDArray[np.float64]

_LARGEST_LOG = 700.0  # of what a float64 holds
_CUT_TOLD = 0.01  # share of what is beyond a quantile


@dataclass(frozen=True)
class Estimate:
    """One metric after some pairs. Changes are relative: 0.01 is 1 % above a.

    Attributes:
        metric: what was asked.
        verdict: ``"under"`` or ``"over"`` the margin, or ``"undecided"``.
        change: of b against a; None while unknown. No verdict rests on it.
        low: the least change that is not refuted at this look; None: any.
        high: the largest; None: any.
        alpha: probability that the change is ever outside.
        baseline: of a mean, that of a so far; of a quantile, the threshold from the pilot.
        over_share: of a quantile, the share of a's values beyond the threshold, of those that equal
            it the part that completes the quantile; else None.
        e_over: of a quantile, the e-value against "not over the margin"; else None.
        e_under: of a quantile, the e-value against "not under the margin"; else None.
        contradictory: whether intervals of different times exclude each other or the change: what
            was measured has changed meanwhile. All else is of the whole time so far.
    """

    metric: Metric
    verdict: Verdict
    change: float | None
    low: float | None
    high: float | None
    alpha: float
    baseline: float | None
    over_share: float | None = None
    e_over: float | None = None
    e_under: float | None = None
    contradictory: bool = False


class Gathering(Protocol):
    """Gathers pairs for one metric."""

    metric: Metric

    def add(self, a: Floats, b: Floats) -> None:
        """Takes the values of one pair, as many of a as of b."""

    def estimate(self) -> Estimate:
        """What is known by now."""

    def notes(self, names: tuple[str, str]) -> tuple[str, ...]:
        """What must be told beside it, with what a and b are called."""


class _Bounds:
    """The interval of the present look, and whether those of the looks so far fit together.

    What is shown and decided is of the present look: it holds for what was measured so far, also
    where that changes meanwhile. The intersection of all looks would not: it keeps what was true
    at the beginning. So it only tells that something has changed.
    """

    def __init__(self, margin: float) -> None:
        self._limit = 1.0 + margin
        self._low, self._high = 0.0, math.inf
        self._greatest_low, self._least_high = 0.0, math.inf

    def look(self, low: float, high: float) -> None:
        self._low, self._high = low, high
        self._greatest_low = max(self._greatest_low, low)
        self._least_high = min(self._least_high, high)

    def are_contradictory(self, ratio: float) -> bool:
        """Whether no ratio is in the intervals of all looks, or the estimate `ratio` is not."""
        if self._greatest_low > self._least_high:
            return True
        return ratio < self._greatest_low or ratio > self._least_high

    @property
    def verdict(self) -> Verdict:
        if self._high <= self._limit:
            return "under"
        return "over" if self._low >= self._limit else "undecided"

    def changes(self) -> tuple[float | None, float | None]:
        low, high = self._low, self._high
        return (low - 1.0 if low > 0.0 else None), (high - 1.0 if high < math.inf else None)


class MeanGathering:
    """The ratio of means of blocks, by a confidence sequence."""

    def __init__(self, metric: Metric, plan: Plan) -> None:
        self.metric = metric
        self._alpha = plan.alpha_each
        self._expected = float(plan.expected_pairs)
        self._sums = PairSums()
        self._scale = 0.0
        self._bounds = _Bounds(metric.margin)

    def add(self, a: Floats, b: Floats) -> None:
        """Takes the values of one pair."""
        mean_a, mean_b = float(a.mean()), float(b.mean())
        self._scale = self._scale or mean_a or 1.0  # about 1, so that no square overflows
        self._sums.add(mean_a / self._scale, mean_b / self._scale)
        if self._sums.count >= MIN_PAIRS:
            low, high = ratio_interval(self._sums, self._alpha, self._expected)
            self._bounds.look(float(low), float(high))

    def estimate(self) -> Estimate:
        """What is known by now."""
        sums, bounds = self._sums, self._bounds
        mean_a, mean_b = (sums.mean_a, sums.mean_b) if sums.count else (0.0, 0.0)
        ratio = mean_b / mean_a if mean_a else math.nan
        return Estimate(
            self.metric,
            bounds.verdict,
            None if math.isnan(ratio) else ratio - 1.0,
            *bounds.changes(),
            self._alpha,
            mean_a * self._scale if sums.count else None,
            contradictory=bounds.are_contradictory(ratio),
        )

    def notes(self, names: tuple[str, str]) -> tuple[str, ...]:
        """Nothing."""
        return ()


class QuantileGathering:
    """The ratio of quantiles, by e-values of the rate of the tail.

    Args:
        metric: a quantile.
        plan: for its part of alpha.
        pilot: the values of a and of b in the pilot, in their order.
        values: how many values of each variant a pair will have.
    """

    def __init__(
        self, metric: Metric, plan: Plan, pilot: tuple[Floats, Floats], values: int
    ) -> None:
        level = metric.level
        assert level is not None
        self.metric = metric
        self._alpha = plan.alpha_each
        # Bursts of b are those over its own quantile: over a's it may be altogether.
        own = [Threshold.of(known, level) for known in pilot]
        largest = max(
            each.largest_count(known, values) for each, known in zip(own, pilot, strict=True)
        )
        self._threshold = own[0].value
        self._ratio = 1.0 + metric.margin
        most = most_counted(values, level, largest)
        self._evidence = QuantileEvidence(own[0], most, self._ratio)
        self._bounds = _Bounds(metric.margin)

    def add(self, a: Floats, b: Floats) -> None:
        """Takes the values of one pair."""
        self._evidence.add(a, b)
        self._bounds.look(*self._evidence.interval(self._alpha))

    def estimate(self) -> Estimate:
        """What is known by now."""
        evidence = self._evidence
        ratio = evidence.estimate()
        above, below = evidence.log_e_values(self._ratio)
        return Estimate(
            self.metric,
            self._bounds.verdict,
            None if math.isnan(ratio) else ratio - 1.0,
            *self._bounds.changes(),
            self._alpha,
            self._threshold,
            evidence.over / evidence.values if evidence.values else None,
            math.exp(min(above, _LARGEST_LOG)),
            math.exp(min(below, _LARGEST_LOG)),
            self._bounds.are_contradictory(ratio),
        )

    def notes(self, names: tuple[str, str]) -> tuple[str, ...]:
        """Whether more than a small part of what is beyond the quantile did not count."""
        shares = self._evidence.cut_shares()
        if max(shares) < _CUT_TOLD:
            return ()
        told = " and ".join(
            f"{share * 100.0:.0f} % of {name}'s" for share, name in zip(shares, names, strict=True)
        )
        return (
            f"{self.metric.name}: a pair counts {self._evidence.most} values beyond the quantile "
            f"at most; larger bursts left out {told}, and the interval is of those that count",
        )
