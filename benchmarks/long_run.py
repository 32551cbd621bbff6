"""Fifty million spans and ten million steps in one run: memory, losses, and what a step costs.

Not among those that ``run.py`` runs, since it takes minutes. The memory is that of the process,
after each tenth of the run. A step at the end is compared with one at the beginning in pairs: each
block of recorded steps is timed beside one of the same model unrecorded, and their ratio is what
is compared, so that other load on the machine meets both alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from torch import nn

import pertoken
from script import Advance, part, run_script
from store_memory import resident_bytes

MEMORY_LIMIT_BYTES = 32 << 20
PARTS = 100
TENTH = PARTS // 10


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
    scale = 100 if smoke else 1
    return {
        "spans": long_run(49, 1_000_000 // scale, part(advance, 0, 2)),
        "steps": long_run(1, 10_000_000 // scale, part(advance, 1, 2)),
    }


def long_run(leaves: int, steps: int, advance: Advance) -> dict[str, Any]:
    """Records `steps` steps of a root and its leaves; steps a part are a hundredth of them."""
    model, control = Row(leaves), Row(leaves)
    block = steps // PARTS
    ratios, resident = [], []
    with pertoken.profile(model, modules="all", memory_limit_bytes=MEMORY_LIMIT_BYTES) as recording:
        for number in range(PARTS):
            ratios.append(paired_ratio(model, control, block))
            resident.append(resident_bytes())
            advance((number + 1) / PARTS)
        store_bytes = int(recording.recorder.store_bytes)
    profile = recording.result()
    spans, evicted = len(profile.spans), profile.losses["spans_evicted"]
    dropped = profile.losses["records_dropped"]
    expected = PARTS * block * (leaves + 1)
    if not dropped and spans + evicted != expected:
        raise RuntimeError(f"{expected} spans were recorded, {spans} held and {evicted} evicted")
    return {
        "steps": PARTS * block,
        "spans": expected,
        "spans_held": spans,
        "spans_evicted": evicted,
        "records_dropped": dropped,
        "memory_limit_bytes": MEMORY_LIMIT_BYTES,
        "store_bytes": store_bytes,
        "resident_bytes_by_tenth": resident[TENTH - 1 :: TENTH],
        "first_percent_ratio": ratios[0],
        "last_percent_ratio": ratios[-1],
        "median_ratio": statistics.median(ratios),
        "last_to_first_percent": ratios[-1] / ratios[0],
        "last_to_first_tenth": statistics.median(ratios[-TENTH:])
        / statistics.median(ratios[:TENTH]),
    }


def paired_ratio(model: nn.Module, control: nn.Module, steps: int) -> float:
    """The median over pairs of blocks: a recorded step against an unrecorded one."""
    pairs = 20
    each = steps // pairs
    return statistics.median(timed(model, each) / timed(control, each) for _ in range(pairs))


def timed(call: Callable[[], Any], times: int) -> int:
    """Nanoseconds of so many calls."""
    begin = perf_counter_ns()
    for _ in range(times):
        call()
    return perf_counter_ns() - begin


if __name__ == "__main__":
    run_script("a long run", measure)
