"""What is measured before an experiment, and used only to lay it out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pertoken.errors import ExperimentError
from pertoken.experiment.autocorrelation import autocorrelation_time, block_length
from pertoken.experiment.block_choice import quickest_block
from pertoken.experiment.confidence_sequence import MIN_PAIRS
from pertoken.experiment.observations import Call, Clock, Exhausted, Variant
from pertoken.experiment.plan import FEWEST_CALLS, Metric, Plan

Floats = NDArray[np.float64]

_BLOCKS_IN_TIME = 4 * 4 * MIN_PAIRS  # a pair has four
_PART_OF_TIME = 8.0
_SWITCHES = 8  # of each variant
_BEYOND = 10  # values of the pilot that lie over a quantile's threshold


@dataclass(frozen=True)
class Pilot:
    """The outcome of a pilot.

    Attributes:
        block_length: calls in a block.
        autocorrelation_time: in calls, the larger of the two variants'; None when not measured.
        of_a: calls of a, for the thresholds of quantiles and the bursts beyond them.
        of_b: calls of b, for its bursts.
        notes: what must be told beside the results.
    """

    block_length: int
    autocorrelation_time: float | None
    of_a: tuple[Call, ...]
    of_b: tuple[Call, ...]
    notes: tuple[str, ...] = ()


def run_pilot(a: Variant, b: Variant, plan: Plan, clock: Clock) -> Pilot:
    """Warms both variants up and measures what the plan leaves open.

    Raises:
        ExperimentError: a stream ends here already, or a quantity is not measured.
    """
    quantiles = [metric for metric in plan.metrics if metric.level is not None]
    try:
        a.calls(plan.warm_up_calls)
        b.calls(plan.warm_up_calls)
        if plan.block_length is not None and not quantiles:
            return Pilot(plan.block_length, None, (), ())
        start_ns = clock()
        of_a = _calls_in_time(a, plan.pilot_calls, plan, clock)
        of_b = _calls_in_time(b, plan.pilot_calls, plan, clock)
        call_s = (clock() - start_ns) / 1e9 / (len(of_a) + len(of_b))
        require_quantities(of_a, plan)
        require_quantities(of_b, plan)
        wanted = max((_calls_for(metric, of_a) for metric in quantiles), default=0)
        of_a += _calls_in_time(a, wanted - len(of_a), plan, clock)
    except Exhausted:
        raise ExperimentError(
            "the measured values end before the experiment begins: give more, or a plan with "
            "fewer pilot_calls and a block_length"
        ) from None
    time = max(map(autocorrelation_time, _series(of_a, plan) + _series(of_b, plan)))
    if plan.block_length is not None:
        return Pilot(plan.block_length, time, tuple(of_a), tuple(of_b))
    longest = _longest_block(plan, call_s)
    if a.shares_noise and b.shares_noise and not quantiles:
        series = _series(of_a, plan) + _series(of_b, plan)
        switch = _switch_calls(a, b, call_s, clock)
        return Pilot(quickest_block(series, switch, longest), time, tuple(of_a), tuple(of_b))
    wanted_length = block_length(time, max(map(len, of_a[0].values())))
    notes: tuple[str, ...] = ()
    if wanted_length > longest:
        notes = (
            f"blocks of {wanted_length} calls would outlast the autocorrelation; there is time "
            f"for {longest}",
        )
    return Pilot(min(wanted_length, longest), time, tuple(of_a), tuple(of_b), notes)


def values_of(calls: Sequence[Call], quantity: str) -> Floats:
    """All values of a quantity in these calls, in order."""
    return np.concatenate([call[quantity] for call in calls])


def require_quantities(calls: Sequence[Call], plan: Plan) -> None:
    """Raises when these calls do not hold what the plan asks for."""
    for metric in plan.metrics:
        for call in calls:
            if metric.quantity not in call:
                raise ExperimentError(
                    f"metric {metric.name!r}: a measurement has no such quantity, but "
                    f"{', '.join(sorted(call))}"
                )


def _calls_in_time(variant: Variant, count: int, plan: Plan, clock: Clock) -> list[Call]:
    """So many calls, or as many as fit into a part of the time, but for the first few."""
    limit_ns = math.inf if plan.max_seconds is None else plan.max_seconds * 1e9 / _PART_OF_TIME
    start_ns = clock()
    taken: list[Call] = []
    while len(taken) < count and (not taken or clock() - start_ns < limit_ns):
        taken += variant.calls(min(FEWEST_CALLS, count - len(taken)))
    return taken


def _series(calls: Sequence[Call], plan: Plan) -> list[Floats]:
    """Of each metric the means of the calls, in order."""
    return [np.array([call[metric.quantity].mean() for call in calls]) for metric in plan.metrics]


def _switch_calls(a: Variant, b: Variant, call_s: float, clock: Clock) -> float:
    """What it takes to begin a block besides its calls, as so many calls of `call_s`."""
    if call_s <= 0.0:
        return 0.0
    extra = []
    for variant in (a, b) * _SWITCHES:
        start_ns = clock()
        variant.calls(1)
        extra.append((clock() - start_ns) / 1e9 / call_s - 1.0)
    return max(0.0, float(np.median(extra)))


def _longest_block(plan: Plan, call_s: float) -> int:
    """The most calls in a block with which some pairs fit into the time."""
    if plan.max_seconds is None or call_s <= 0.0:
        return plan.pilot_calls
    return max(1, min(plan.pilot_calls, int(plan.max_seconds / call_s / _BLOCKS_IN_TIME)))


def _calls_for(metric: Metric, calls: Sequence[Call]) -> int:
    """How many calls the threshold of a quantile needs."""
    assert metric.level is not None
    values = _BEYOND / (1.0 - metric.level)
    return math.ceil(values / len(calls[0][metric.quantity]))
