"""Estimates what recording costs: the costs of its calls on this machine, times their number.

The wrappers themselves are timed, round calls that do nothing, once a process and off the hot path.
That is with warm caches: in a real model a call costs more, see docs/performance.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import repeat
from time import perf_counter_ns
from typing import Any

from pertoken import _native

_CALLS = 200  # a batch: a few tens of microseconds
_BATCHES = 15


@dataclass(frozen=True)
class RecordCosts:
    """What recording adds to one call, in nanoseconds, on the thread that makes the call."""

    span_ns: float
    step_ns: float


_lock = threading.Lock()
_costs: RecordCosts | None = None


def record_costs() -> RecordCosts | None:
    """The costs on this machine, measured at the first call, which takes a few milliseconds.

    None when as many recordings run as can: measuring needs one more for its duration.
    """
    global _costs
    if _costs is None and _lock.acquire(blocking=False):
        try:
            _costs = _measure()
        except RuntimeError:
            return None
        finally:
            _lock.release()
    return _costs


def estimated_ns(counts: dict[str, Any], costs: RecordCosts) -> float:
    """What a recording has cost so far.

    Args:
        counts: the native status of the recording.
        costs: what each record costs.

    Returns:
        Nanoseconds: of the calls, and of the thread that drains the rings as if the model had
        waited for it.
    """
    steps = sum(counts["steps"])
    spans = max(0, counts["spans"] - steps)  # each step has a span of its own, part of its cost
    return float(counts["drain_cpu_ns"] + spans * costs.span_ns + steps * costs.step_ns)


def _measure() -> RecordCosts:
    recorder = _native.Recorder(1 << 20, 1 << 14)
    recorder.start()
    try:
        site = 0  # of any name: nobody reads what is recorded here
        span = _native.SpanCall(int, recorder, site)
        step = _root(dict, recorder, site)
        found: list[float] = []
        # Inside a step, where spans are cheap; and steps outside any.
        _root(lambda: found.append(_added_ns(span, int)), recorder, site)()
        found.append(_added_ns(lambda: step(input_ids=None), lambda: dict(input_ids=None)))
    finally:
        recorder.stop()
    return RecordCosts(*found)


def _root(inner: Callable[..., Any], recorder: Any, site: int) -> Any:
    state: ContextVar[Any] = ContextVar("pertoken_overhead")
    return _native.RootCall(inner, recorder, site, state, [(0, "input_ids", 0)], False)


def _added_ns(wrapped: Callable[[], Any], bare: Callable[[], Any]) -> float:
    """The quickest batch of each counts: the others waited for something."""
    best = {wrapped: float("inf"), bare: float("inf")}
    for _ in range(_BATCHES):
        for call in (wrapped, bare):
            start_ns = perf_counter_ns()
            for _ in repeat(None, _CALLS):
                call()
            best[call] = min(best[call], (perf_counter_ns() - start_ns) / _CALLS)
    return max(0.0, best[wrapped] - best[bare])
