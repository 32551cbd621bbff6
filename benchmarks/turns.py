"""Comparing a recording with nothing inside one decode, in which they take turns.

Blocks of a quarter of a second are too far apart for tenths of a per cent: what else the machine
does changes a step by several per cent from one block to the next. So the wrappers leave and enter
the model every few steps of the same text, outside what is timed, and a turn of each makes a pair.
The first step of a turn pays for the switch and does not count.

The recording runs on, and with it its drain thread. What that took of a processor, and what it has
left at the end of the text, counts as if each recorded step had waited for its part. In both turns
`generate()` stays wrapped, and with it the method that it calls for each commit, which then hands
the call on.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import pertoken
from paired import median_interval

TURN_STEPS = 3  # the first of them is not counted

# Runs so many steps, calls what it is given before each, and returns the nanoseconds of each.
Decode = Callable[[int, Callable[[], None]], list[int]]


@dataclass
class Turns:
    """Pairs of turns of one variant.

    Args:
        recording: what takes turns with nothing.
        records: False: it enters and leaves, and records in neither turn, which is the control.
    """

    recording: pertoken.Recording
    records: bool = True
    nothing_ns: list[float] = field(default_factory=list)  # mean step of each turn
    other_ns: list[float] = field(default_factory=list)
    drained_ns: list[float] = field(default_factory=list)  # a step, as of the text it was in

    def run_text(self, decode: Decode, pairs: int, order: random.Random, *, keep: bool) -> None:
        """Decodes a text of so many pairs, each in a random order; a warm-up's are not kept."""
        plan = [turn for _ in range(pairs) for turn in order.sample((False, True), 2)]
        with self.recording, _without_collector():
            recorder = self.recording.recorder
            switches = self._switches(plan)
            drained_ns = -recorder.drain_cpu_ns
            times_ns = decode(len(plan) * TURN_STEPS, lambda: next(switches))
            drained_ns += recorder.drain_cpu_ns - perf_counter_ns()
            recorder.drain()
            drained_ns += perf_counter_ns()
        if not keep:
            return
        turns = [
            statistics.fmean(times_ns[first + 1 : first + TURN_STEPS])
            for first in range(0, len(times_ns), TURN_STEPS)
        ]
        for turn_ns, is_other in zip(turns, plan, strict=True):
            (self.other_ns if is_other else self.nothing_ns).append(turn_ns)
        self.drained_ns += [drained_ns / (pairs * TURN_STEPS) * self.records] * pairs

    def _switches(self, plan: list[bool]) -> Iterator[None]:
        """Advanced before each step, switches before those that begin a turn."""
        is_in = True
        for is_other in plan:
            # Each turn is entered from the other state, so that the same has run before all.
            wanted = is_other and self.records
            if is_in == wanted:
                self._move(not wanted)
            self._move(wanted)
            is_in = wanted
            for _ in range(TURN_STEPS):
                yield

    def _move(self, enters: bool) -> None:
        (self.recording.enter_model if enters else self.recording.leave_model)()

    def estimates(self) -> dict[str, Any]:
        """What the pairs give, each an estimate as of `median_interval`.

        Returns:
            ``step_ns``, the mean step of its turns, all in; ``ratio`` to doing nothing and
            ``added_ns``, all in; ``added_in_step_ns``, without what is drained; ``drained_ns``.
        """
        whole = [sum(parts) for parts in zip(self.other_ns, self.drained_ns, strict=True)]
        pairs = list(zip(whole, self.nothing_ns, strict=True))
        in_steps = zip(self.other_ns, self.nothing_ns, strict=True)
        return {
            "step_ns": median_interval(whole),
            "ratio": median_interval(ours / theirs for ours, theirs in pairs),
            "added_ns": median_interval(ours - theirs for ours, theirs in pairs),
            "added_in_step_ns": median_interval(ours - theirs for ours, theirs in in_steps),
            "drained_ns": median_interval(self.drained_ns),
        }


@contextmanager
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
