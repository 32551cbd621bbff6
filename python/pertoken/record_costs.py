"""Estimates what recording costs: the costs of its calls on this machine, times their number.

The wrappers themselves are timed, round calls that do nothing, once a process and off the hot path.
Before each call other memory is touched, as a model does between its calls.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from statistics import mean, median
from time import perf_counter_ns
from typing import Any

from pertoken import _native
from pertoken.observing import NOTHING_OBSERVED, Observing

_SAMPLES = 101
_STEPS_WITHOUT_DETAIL = 64
_TRIES = 8
_DRAINED = 1000
_OBSERVED = 31
_OBSERVED_VALUES = 1024
_TOUCHED_BYTES = 512 << 10  # more than the caches that are a core's own hold besides


@dataclass(frozen=True)
class RecordCosts:
    """What recording adds to one call, in nanoseconds, on the thread that makes the call.

    `drain_ns` is what the drain thread takes for one record; `observe_ns` what a small tensor takes
    to be observed, on both threads.
    """

    span_ns: float
    step_ns: float
    skip_ns: float = 0.0  # a module's call in a step that was sampled without detail
    drain_ns: float = 0.0
    observe_ns: float = 0.0


_lock = threading.Lock()
_costs: RecordCosts | None = None


def record_costs() -> RecordCosts | None:
    """The costs on this machine, measured at the first call, which takes some 10 ms.

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


def leave_out_detail(recorder: Any, budget: float) -> None:
    """Has the recorder sample with next to nothing to spend: few steps after its first have detail.

    Args:
        recorder: a native recorder that was never started.
        budget: as a share of the steps' time.
    """
    recorder.sample(
        budget=budget,
        costs_ns=(1e3, 1e3, 1.0, 0.0),
        levels=[(_native.DETAIL_LAYERS, 1.0)],
        observe_ns=0.0,
        most_observed=1.0,
        observes=False,
        seed=1,
    )


def detailed_steps(recorder: Any) -> int:
    """How many steps of a native recorder that samples have had spans so far."""
    strata = recorder.sampling()["strata"].values()
    return sum(sum(row["details"][0]["detailed"]) for row in strata)


def _measure() -> RecordCosts:
    recorder = _native.Recorder(1 << 20, 1 << 14)
    recorder.start()
    try:
        site = 0  # of any name: nobody reads what is recorded here
        span = _native.SpanCall(int, recorder, site)
        step = _root(dict, recorder, site)
        ids = sys.modules["torch"].zeros((1, 1), dtype=sys.modules["torch"].int64)
        found: list[float] = []
        # Inside a step, where most spans are; and steps outside any.
        _root(lambda: found.append(_added_ns(span, int, {})), recorder, site)()
        found.append(_added_ns(step, dict, {"input_ids": ids}))
        found.append(_skip_ns(site))
        found.append(_drain_ns(span, recorder))
        found.append(_observe_ns(site))
    finally:
        recorder.stop()
    return RecordCosts(*found)


def _skip_ns(site: int) -> float:
    recorder = _native.Recorder(1 << 20, 1 << 14)
    leave_out_detail(recorder, budget=1e-9)
    recorder.start()
    try:
        span = _native.SpanCall(int, recorder, site, _native.DETAIL_LAYERS)
        for _ in range(_STEPS_WITHOUT_DETAIL):
            _root(dict, recorder, site)()
        found: list[float] = []
        for _ in range(_TRIES):
            before = detailed_steps(recorder)
            _root(lambda: found.append(_added_ns(span, int, {})), recorder, site)()
            if detailed_steps(recorder) == before:
                break
    finally:
        recorder.stop()
    return found[-1]


def _drain_ns(span: Any, recorder: Any) -> float:
    """The middle one of some: the recorder's own thread may have been quicker."""
    recorder.drain()
    found = []
    for _ in range(_TRIES):
        for _ in range(_DRAINED):
            span()
        start_ns = perf_counter_ns()
        recorder.drain()
        found.append((perf_counter_ns() - start_ns) / _DRAINED)
    return median(found)


def _observe_ns(site: int) -> float:
    """The middle one of some, collected at once."""
    recorder = _native.Recorder(1 << 20, 1 << 14, observe_every=1)
    observer = Observing(recorder, NOTHING_OBSERVED).observer
    values = sys.modules["torch"].linspace(-1, 1, _OBSERVED_VALUES)
    touched = bytes(_TOUCHED_BYTES)
    recorder.start()
    try:
        found = []
        for _ in range(_OBSERVED):
            bytearray(touched)
            start_ns = perf_counter_ns()
            observer.observe(site, values)
            recorder.drain()
            found.append(perf_counter_ns() - start_ns)
    finally:
        recorder.stop()
    return median(found)


def _root(inner: Callable[..., Any], recorder: Any, site: int) -> Any:
    state: ContextVar[Any] = ContextVar("pertoken_record_costs")
    return _native.RootCall(inner, recorder, site, state, [(0, "input_ids", 0)], False, True, 0)


def _added_ns(wrapped: Any, bare: Any, arguments: dict[str, Any]) -> float:
    """The middle half of the calls of each counts, its mean: some wait for something."""
    touched = bytes(_TOUCHED_BYTES)
    taken_ns: tuple[list[int], list[int]] = ([], [])
    for _ in range(_SAMPLES):
        for call, times_ns in zip((wrapped, bare), taken_ns, strict=True):
            bytearray(touched)
            start_ns = perf_counter_ns()
            call(**arguments)
            times_ns.append(perf_counter_ns() - start_ns)
    quarter = _SAMPLES // 4
    middle_ns = [mean(sorted(times_ns)[quarter:-quarter]) for times_ns in taken_ns]
    return max(0.0, middle_ns[0] - middle_ns[1])
