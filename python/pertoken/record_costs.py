"""Estimates what recording costs: the costs of its calls on this machine, times their number.

The wrappers themselves are timed in calls like those of modules, once a process and off the hot
path. Before each call the caches are filled with something else, as a model does between its calls:
a wrapper whose code and data were just in use costs less than in a decode.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from statistics import mean, median
from time import perf_counter_ns
from typing import Any

from pertoken import _native
from pertoken.observing import NOTHING_OBSERVED, Observed, Observing

_SAMPLES = 303
_STEPS_WITHOUT_DETAIL = 64
_TRIES = 8
_UNRECORDED = 3  # a call that is passed on adds less than times of calls scatter
_DRAINED = 1000
_OBSERVED = 31
_OBSERVED_VALUES = 1024
_TOUCHED_BYTES = 640 << 10  # read, and as many written: about what the caches of a core hold
_TOUCHED_VALUES = 64


@dataclass(frozen=True)
class RecordCosts:
    """What recording adds to one call, in nanoseconds, on the thread that makes the call.

    `step_ns` is the root's wrapper, for steps in which that was not timed. In a step that was
    sampled without detail, `skip_ns` is a module's call that its wrapper passes on. `drain_ns` is
    what the drain thread takes for one record; `observe_ns` what a small tensor takes to be
    observed, and `logits_ns` what the logits of a small vocabulary take to be read, on both
    threads. What it takes to move wrappers is measured where it is done.
    """

    span_ns: float
    step_ns: float
    skip_ns: float = 0.0
    drain_ns: float = 0.0
    observe_ns: float = 0.0
    logits_ns: float = 0.0


class _Call:
    """Calls a function the way ``torch.nn.Module`` calls its forward, but for anybody's hooks."""

    def __init__(self, forward: Callable[[Any], Any]) -> None:
        self.slot: Any = None
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.slot is not None:
            return self.slot(*args, **kwargs)
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


class _OtherWork:
    """What a model does between the calls of its modules: other data, and other code.

    Values are few, so that no operator takes several threads for it.
    """

    def __init__(self) -> None:
        torch = sys.modules["torch"]
        self._read = bytes(_TOUCHED_BYTES)
        self._written = bytearray(_TOUCHED_BYTES)
        size = _TOUCHED_VALUES
        self.values = torch.ones((1, size), dtype=torch.float32, device="cpu")
        weight = torch.ones((size, size), dtype=torch.float32, device="cpu")
        functional = torch.nn.functional
        self._calls = [
            _Call(lambda values: functional.layer_norm(values, (size,))),
            _Call(lambda values: functional.linear(values, weight)),
            _Call(functional.silu),
            _Call(lambda values: values * values),
            _Call(lambda values: functional.softmax(values, -1)),
        ]

    def do(self) -> None:
        self._written[:] = self._read
        values = self.values
        for call in self._calls:
            values = call(values)


_lock = threading.Lock()
_costs: RecordCosts | None = None


def record_costs() -> RecordCosts | None:
    """The costs on this machine, measured at the first call, which takes some 200 ms.

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
        counts: the native status of the recording, which has what the root's wrapper took.
        costs: what each record costs.

    Returns:
        Nanoseconds: of the calls, and of the thread that drains the rings as if the model had
        waited for it.
    """
    steps = sum(counts["steps"])
    spans = max(0, counts["spans"] - steps)  # each step has a span of its own, part of its cost
    roots_ns = counts["root_ns"] + (steps - counts["timed_roots"]) * costs.step_ns
    return float(counts["drain_cpu_ns"] + spans * costs.span_ns + roots_ns)


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
        observed=(0.0, 1.0, False),
        logits=None,
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
        found: list[float] = []

        def span(inner: Any) -> Any:
            return _native.SpanCall(inner, recorder, site)

        # Inside a step, where most spans are; and steps outside any.
        spans = _calls(span)
        _root(lambda: found.append(_added_ns(spans)), recorder, site)()
        found.append(_added_ns(_calls(lambda inner: _root(inner, recorder, site))))
        unrecorded = [_unrecorded_ns(site) for _ in range(_UNRECORDED)]
        found.append(median(unrecorded))
        found.append(_drain_ns(span(int), recorder))
        found.append(_observe_ns(site))
        found.append(_logits_ns(site))
    finally:
        recorder.stop()
    return RecordCosts(*found)


def _unrecorded_ns(site: int) -> float:
    """What a wrapper takes in a step without detail, to pass its call on."""
    recorder = _native.Recorder(1 << 20, 1 << 14)
    leave_out_detail(recorder, budget=1e-9)
    recorder.start()
    try:
        spans = _calls(lambda inner: _native.SpanCall(inner, recorder, site, _native.DETAIL_LAYERS))
        for _ in range(_STEPS_WITHOUT_DETAIL):
            _root(dict, recorder, site)()
        return _in_plain_step(lambda: _added_ns(spans), recorder, site)
    finally:
        recorder.stop()


def _in_plain_step(measure: Callable[[], float], recorder: Any, site: int) -> float:
    """What is measured in a step without detail, as most are."""
    found: list[float] = []
    for _ in range(_TRIES):
        before = detailed_steps(recorder)
        _root(lambda: found.append(measure()), recorder, site)()
        if detailed_steps(recorder) == before:
            break
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
    other_work = _OtherWork()
    recorder.start()
    try:
        found = []
        for _ in range(_OBSERVED):
            other_work.do()
            start_ns = perf_counter_ns()
            observer.observe(site, values)
            recorder.drain()
            found.append(perf_counter_ns() - start_ns)
    finally:
        recorder.stop()
    return median(found)


def _logits_ns(site: int) -> float:
    """What a step takes longer in a generate() that reads them: the middle one of some of each."""
    recorder = _native.Recorder(1 << 20, 1 << 14)
    Observing(recorder, Observed(logits=True))
    torch = sys.modules["torch"]
    logits = torch.ones((1, 1, _OBSERVED_VALUES), dtype=torch.float32, device="cpu")
    token = torch.zeros((1, 1), dtype=torch.long, device="cpu")
    generation: ContextVar[Any] = ContextVar("pertoken_record_costs")
    root = _root(lambda token: logits, recorder, site, generation)
    outside, inside = copy_context(), copy_context()
    other_work = _OtherWork()
    recorder.start()
    try:
        inside.run(generation.set, _native.GenerationState(recorder, 0, 0, False, 0, False, False))
        found: dict[bool, list[int]] = {True: [], False: []}
        for number in range(2 * _OBSERVED):
            is_read = number % 2 == 1
            context = inside if is_read else outside
            other_work.do()
            start_ns = perf_counter_ns()
            context.run(root, token)
            recorder.drain()
            found[is_read].append(perf_counter_ns() - start_ns)
    finally:
        recorder.stop()
    return max(0.0, median(found[True]) - median(found[False]))


def _root(
    inner: Callable[..., Any], recorder: Any, site: int, state: ContextVar[Any] | None = None
) -> Any:
    state = state or ContextVar("pertoken_record_costs")
    return _native.RootCall(inner, recorder, site, state, [(0, "input_ids", 0)], False, True, 0)


def _calls(wrap: Callable[[Any], Any] | None = None) -> list[_Call]:
    """Calls of a function that does little, each behind a wrapper of its own, or behind none."""
    calls = [_Call(sys.modules["torch"].nn.functional.silu) for _ in range(_SAMPLES)]
    if wrap is not None:
        for call in calls:
            call.slot = wrap(call.call)
    return calls


def _added_ns(wrapped: list[_Call]) -> float:
    """What a wrapper adds to a call: each is called once, as those of a model are in a step.

    The middle half of the calls of each counts, its mean: some wait for something. Bare calls come
    first and second by turns, since the first of two finds less in the caches.
    """
    other_work = _OtherWork()
    wrapped_ns: list[int] = []
    bare_ns: list[int] = []
    for number, pair in enumerate(zip(wrapped, _calls(), strict=True)):
        timed = list(zip(pair, (wrapped_ns, bare_ns), strict=True))
        for call, times_ns in timed if number % 2 else reversed(timed):
            other_work.do()
            start_ns = perf_counter_ns()
            call(other_work.values)
            times_ns.append(perf_counter_ns() - start_ns)
    return max(0.0, _middle(wrapped_ns) - _middle(bare_ns))


def _middle(times_ns: list[int]) -> float:
    quarter = len(times_ns) // 4
    return mean(sorted(times_ns)[quarter:-quarter])
