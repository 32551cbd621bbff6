"""Fifty million spans in one run, then ten million steps: memory, losses, and the cost of a step.

A block of recorded steps runs between two halves of a block of the same model unrecorded, and their
ratio is what a step costs then, so that other load on the machine meets both alike. The ratios of
the last tenth of the run are held against those of the first. The halves, one against the other,
get the same treatment: that is the noise. What was counted in all is held against what was made.
All takes some 2 minutes.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from torch import nn

import pertoken
from paired import median_interval
from script import Advance, part, run_script
from store_memory import resident_bytes

MEMORY_LIMIT_BYTES = 32 << 20
BLOCKS = 2000
TENTH = BLOCKS // 10
TIMED_TOTALS = 100


class Leaf(nn.Module):
    """A call that does nothing."""

    def forward(self) -> None:
        """Returns at once."""


class Row(nn.Module):
    """A root that calls so many leaves."""

    def __init__(self, leaves: int) -> None:
        super().__init__()
        self.leaves = nn.ModuleList([Leaf() for _ in range(leaves)])
        self._calls: tuple[nn.Module, ...] = tuple(self.leaves)

    def forward(self) -> None:
        """Calls each of them."""
        for leaf in self._calls:
            leaf()


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Runs many spans a step, then many steps of few spans."""
    scale = 500 if smoke else 1
    return {
        "memory_limit_bytes": MEMORY_LIMIT_BYTES,
        "runs": {
            "many spans": long_run(49, 1_000_000 // scale, part(advance, 0, 2)),
            "many steps": long_run(1, 10_000_000 // scale, part(advance, 1, 2)),
        },
    }


def long_run(leaves: int, steps: int, advance: Advance) -> dict[str, Any]:
    """Records `steps` steps of a root and its leaves, a block after the other."""
    model, control = Row(leaves), Row(leaves)
    warm_up(model)
    ratios, noise, resident = [], [], []
    before_bytes = resident_bytes()
    totals_ns: dict[str, dict[str, float]] = {}
    with pertoken.profile(model, modules="all", memory_limit_bytes=MEMORY_LIMIT_BYTES) as recording:
        for number in range(1, BLOCKS + 1):
            before, recorded, after = sandwich(model, control, steps // BLOCKS)
            ratios.append(recorded / (before + after))
            noise.append(after / before)
            if number % (BLOCKS // 100) == 0:
                resident.append(resident_bytes())
                advance(number / BLOCKS)
            if number in (TENTH, BLOCKS):
                name = "first tenth" if number == TENTH else "end"
                totals_ns[name] = median_interval(
                    timed(recording.totals, 1) for _ in range(TIMED_TOTALS)
                )
        store_bytes = int(recording.recorder.store_bytes)
    begin_ns = perf_counter_ns()
    profile = recording.result()
    result_ns = perf_counter_ns() - begin_ns
    return {
        **losses(profile, recording.totals(), steps, leaves + 1),
        "store_bytes": store_bytes,
        "grown_bytes": max(resident) - before_bytes,
        "grown_bytes_by_tenth": [resident[at] - before_bytes for at in range(9, len(resident), 10)],
        "step_ratio": statistics.median(ratios),
        "last_to_first": last_to_first(ratios),
        "noise": last_to_first(noise),
        "totals_ns": totals_ns,
        "result_ns": result_ns,
    }


def warm_up(model: Row) -> None:
    """Makes what is allocated once and for all, so that it does not count as growth.

    And gives back what an earlier run has freed, so that this one's growth is all its own.
    """
    with pertoken.profile(model, modules="all") as recording:
        model()
    recording.result()
    recording.totals()
    del recording
    gc.collect()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if give_back is not None:
        give_back(0)


def sandwich(model: Row, control: Row, steps: int) -> tuple[int, int, int]:
    """Nanoseconds of half as many unrecorded steps, of the recorded ones, and of the other half."""
    half = max(1, steps // 2)
    return timed(control, half), timed(model, steps), timed(control, half)


def timed(call: Callable[[], Any], times: int) -> int:
    """Nanoseconds of so many calls."""
    begin = perf_counter_ns()
    for _ in range(times):
        call()
    return perf_counter_ns() - begin


def last_to_first(values: list[float]) -> dict[str, float]:
    """Those of the last tenth against those of the first, one by one."""
    return median_interval(
        last / first for last, first in zip(values[-TENTH:], values[:TENTH], strict=True)
    )


def losses(
    profile: pertoken.Profile, totals: pertoken.Totals, steps: int, spans_a_step: int
) -> dict[str, Any]:
    """What was made, and where it went.

    `untold` is what is missing without `losses` saying so: spans and steps that were not counted,
    less the records that were dropped, and spans that were counted but are neither held nor
    evicted.
    """
    told = profile.losses
    spans = sum(site.dur_ns.count for site in totals.sites.values())
    begun = sum(row.begun for row in totals.steps.values())
    missing = steps * (spans_a_step + 1) - spans - begun
    gone = spans - len(profile.spans) - told["spans_evicted"]
    return {
        "steps": steps,
        "spans": steps * spans_a_step,
        "spans_held": len(profile.spans),
        "spans_evicted": told["spans_evicted"],
        "records_dropped": told["records_dropped"],
        "untold": max(0, missing - told["records_dropped"]) + abs(gone),
    }


if __name__ == "__main__":
    run_script("a long run", measure)
