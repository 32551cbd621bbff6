"""Runs an experiment: randomised ABBA blocks, a look after every pair, an end once it can tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from pertoken.errors import ExperimentError
from pertoken.experiment.estimate import Gathering, MeanGathering, QuantileGathering
from pertoken.experiment.observations import Call, Clock, Exhausted, Variant, variant_of
from pertoken.experiment.pilot import Pilot, require_quantities, run_pilot, values_of
from pertoken.experiment.plan import Plan, checked_plan
from pertoken.experiment.result import Ending, Result

Floats = NDArray[np.float64]
Source = Callable[[], object] | Iterable[object]

_ORDERS = ("abba", "baab")


def compare(
    a: Source,
    b: Source,
    plan: Plan | None = None,
    *,
    names: tuple[str, str] = ("a", "b"),
    on_look: Callable[[Result], object] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Result:
    """Compares two variants until the plan's question is answered, or its limits are reached.

    Args:
        a: the one that b is measured against: a callable without arguments, each call of which is
            timed (or returns `Measured`), or an iterator of measured values, which is asked for
            the next value when it is a's turn.
        b: the other, likewise.
        plan: what to decide, and when to end; None: whether the mean is under 1 % above.
        names: what to call a and b.
        on_look: called with the result so far after every pair, outside what is timed.
        clock: nanoseconds, to time callables and `max_seconds` with.

    Returns:
        The `Result` when it ended. What a, b or `on_look` raise is passed on; to keep the result
        of an interrupted experiment, use `looks`.

    Raises:
        ExperimentError: a or b is not of these forms, or measures what cannot be compared; or the
            plan is no `Plan`.
    """
    last = None
    for last in looks(a, b, plan, names=names, clock=clock):
        if on_look is not None:
            on_look(last)
    assert last is not None
    return last


def looks(
    a: Source,
    b: Source,
    plan: Plan | None = None,
    *,
    names: tuple[str, str] = ("a", "b"),
    clock: Clock = time.perf_counter_ns,
) -> Iterator[Result]:
    """The same, giving the result after every pair. Leave the loop whenever you like.

    Each result is valid, whatever made you stop there. Arguments and errors are those of `compare`.
    """
    if len(set(names)) != 2:
        raise ExperimentError(f"names={names!r}: give two different names")
    variants = (variant_of(a, str(names[0]), clock), variant_of(b, str(names[1]), clock))
    return variant_looks(variants, checked_plan(plan), names=names, clock=clock)


def variant_looks(
    variants: tuple[Variant, Variant],
    plan: Plan,
    *,
    names: tuple[str, str],
    clock: Clock,
    notes: Callable[[], Sequence[str]] = tuple,
) -> Iterator[Result]:
    """As `looks`, of variants; `notes` gives what to tell beside the numbers, at each look."""
    start = clock()
    pilot = run_pilot(*variants, plan, clock)
    order = np.random.default_rng(plan.seed)
    gatherings: list[Gathering] = []
    sizes: dict[str, int] = {}
    pairs = 0
    ending: Ending | None = None
    while ending is None:
        try:
            pair = _run_pair(variants, _ORDERS[order.integers(2)], pilot.block_length)
        except Exhausted:
            if not pairs:
                raise ExperimentError("the measured values end within the first pair") from None
            ending = "end of data"
        else:
            for calls in pair:
                require_quantities(calls, plan)
                _require_sizes(calls, plan, sizes)
            gatherings = gatherings or _gatherings(plan, pilot, pair[0])
            for gathering in gatherings:
                quantity = gathering.metric.quantity
                gathering.add(values_of(pair[0], quantity), values_of(pair[1], quantity))
            pairs += 1
        seconds = (clock() - start) / 1e9
        told = [note for gathering in gatherings for note in gathering.notes(names)]
        result = Result(
            plan=plan,
            names=names,
            estimates=tuple(gathering.estimate() for gathering in gatherings),
            pairs=pairs,
            block_length=pilot.block_length,
            autocorrelation_time=pilot.autocorrelation_time,
            seconds=seconds,
            ending=ending,
            notes=(*pilot.notes, *told, *notes()),
        )
        ending = ending or _ending(result)
        yield result.ended_by(ending)


def _run_pair(
    variants: tuple[Variant, Variant], order: str, length: int
) -> tuple[list[Call], list[Call]]:
    """Two blocks of each variant, the second ones in the reverse order of the first.

    Those that meet are one block of twice the length: there is nothing to switch between them.
    """
    taken: tuple[list[Call], list[Call]] = ([], [])
    for letter, blocks in groupby(order):
        side = "ab".index(letter)
        taken[side].extend(variants[side].calls(length * len(list(blocks))))
    return taken


def _gatherings(plan: Plan, pilot: Pilot, calls: Sequence[Call]) -> list[Gathering]:
    made: list[Gathering] = []
    for metric in plan.metrics:
        if metric.level is None:
            made.append(MeanGathering(metric, plan))
        else:
            values = len(values_of(calls, metric.quantity))
            known = (
                values_of(pilot.of_a, metric.quantity),
                values_of(pilot.of_b, metric.quantity),
            )
            made.append(QuantileGathering(metric, plan, known, values))
    return made


def _require_sizes(calls: Sequence[Call], plan: Plan, sizes: dict[str, int]) -> None:
    """Every call gives as many values: else the longer one would seem to have the heavier tail."""
    for metric in plan.metrics:
        for call in calls:
            size = len(call[metric.quantity])
            if sizes.setdefault(metric.quantity, size) != size:
                raise ExperimentError(
                    f"metric {metric.name!r}: one call gave {sizes[metric.quantity]} values and "
                    f"another {size}; every call must give as many"
                )


def _ending(result: Result) -> Ending | None:
    if result.verdict != "undecided":
        return "verdict"
    if result.pairs >= result.plan.max_pairs:
        return "max_pairs"
    limit_s = result.plan.max_seconds
    return "max_seconds" if limit_s is not None and result.seconds >= limit_s else None
