"""What is known of one metric: gathered pair by pair, and told as an `Estimate` at any time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pertoken.experiment.confidence_sequence import MIN_PAIRS, PairSums, ratio_interval
from pertoken.experiment.e_value import QuantileEvidence
from pertoken.experiment.plan import Metric, Plan, Verdict

Floats = NDArray[np.float64]

_LARGEST_LOG = 700.0  # of what a float64 holds


@dataclass(frozen=True)
class Estimate:
    """One metric after some pairs. Changes are relative: 0.01 is 1 % above a.

    Attributes:
        metric: what was asked.
        verdict: ``"under"`` or ``"over"`` the margin, or ``"undecided"``.
        change: of b against a; None while unknown. No verdict rests on it.
        low: the least change that is not refuted; None: any.
        high: the largest; None: any.
        alpha: probability that the change is ever outside.
        baseline: of a mean, that of a so far; of a quantile, the threshold from the pilot.
        over_share: of a quantile, the share of a's values beyond the threshold; else None.
        e_over: of a quantile, the e-value against "not over the margin"; else None.
        e_under: of a quantile, the e-value against "not under the margin"; else None.
        contradictory: whether intervals of different times exclude each other: what was measured
            has changed meanwhile.
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


class _Bounds:
    """The intersection of the intervals of all looks, which holds whenever all of them do."""

    def __init__(self, margin: float) -> None:
        self._limit = 1.0 + margin
        self.low, self.high = 0.0, math.inf

    def narrow(self, low: float, high: float) -> None:
        self.low, self.high = max(self.low, low), min(self.high, high)

    @property
    def contradictory(self) -> bool:
        return self.low > self.high

    @property
    def verdict(self) -> Verdict:
        if self.contradictory:
            return "undecided"
        if self.high <= self._limit:
            return "under"
        return "over" if self.low >= self._limit else "undecided"

    def changes(self) -> tuple[float | None, float | None]:
        low, high = self.low, self.high
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
        self._scale = self._scale or mean_a or 1.0  # about 1, so that no sum loses digits
        self._sums.add(mean_a / self._scale, mean_b / self._scale)
        if self._sums.count >= MIN_PAIRS:
            low, high = ratio_interval(self._sums, self._alpha, self._expected)
            self._bounds.narrow(float(low), float(high))

    def estimate(self) -> Estimate:
        """What is known by now."""
        sums = self._sums
        return Estimate(
            self.metric,
            self._bounds.verdict,
            sums.b / sums.a - 1.0 if sums.a else None,
            *self._bounds.changes(),
            self._alpha,
            sums.a / sums.count * self._scale if sums.count else None,
            contradictory=self._bounds.contradictory,
        )


class QuantileGathering:
    """The ratio of quantiles, by e-values of the rate of the tail."""

    def __init__(self, metric: Metric, plan: Plan, pilot: Floats, values: int) -> None:
        """Takes the pilot's values of a, and how many values of each variant a pair will have."""
        assert metric.level is not None
        self.metric = metric
        self._alpha = plan.alpha_each
        self._threshold = float(np.quantile(pilot, metric.level))
        self._ratio = 1.0 + metric.margin
        self._evidence = QuantileEvidence(self._threshold, metric.level, values, self._ratio)
        self._bounds = _Bounds(metric.margin)

    def add(self, a: Floats, b: Floats) -> None:
        """Takes the values of one pair."""
        self._evidence.add(a, b)
        self._bounds.narrow(*self._evidence.interval(self._alpha))

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
            self._bounds.contradictory,
        )
