"""`measure_overhead`: an experiment in which only the recording differs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pertoken.errors import ExperimentError
from pertoken.experiment.comparison import variant_looks
from pertoken.experiment.observations import Call, Clock, TimedCalls
from pertoken.experiment.plan import Plan, checked_plan
from pertoken.experiment.result import Result
from pertoken.number_argument import is_number
from pertoken.profile_function import profile
from pertoken.random_state import RandomState
from pertoken.recording import Recording

if TYPE_CHECKING:
    import torch

    from pertoken.selection import ModuleSelection

NAMES = ("off", "on")
_MEMORY_LIMIT_BYTES = 32 << 20


def measure_overhead(
    model: torch.nn.Module,
    run: Callable[[], object],
    *,
    modules: ModuleSelection = "layers",
    budget: float = 0.01,
    sampled: bool = False,
    plan: Plan | None = None,
    on_look: Callable[[Result], object] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Result:
    """Tests whether recording a model costs more than a budget, on this machine, with this run.

    `run` is called again and again in this process, in randomised blocks with the recording on and
    off, until it can be told on which side of the budget the cost is. Each call begins with the
    same state of the random generators, so that all of them do the same work; afterwards the
    state is what it was before. Nothing remains in the model.

    Args:
        model: what would be given to `profile`.
        run: runs the model once, such as ``lambda: model.generate(**inputs, max_new_tokens=32)``.
            Its call is timed; or it returns `experiment.Measured` with nanoseconds, of each of its
            steps for instance. What else it returns is dropped.
        modules: as `profile` takes it.
        budget: the margin, as a share of the time without a recording, above 0 and below 1: 0.01
            is 1 %. A `plan` has its own.
        sampled: whether the recording keeps `budget`, as ``profile(budget=)`` does, so that it is
            proved that it does; else it records everything.
        plan: another plan than "the mean, within `budget`".
        on_look: called with the result so far after every pair of blocks, outside what is timed.
        clock: nanoseconds.

    Returns:
        The result; `names` are ``("off", "on")``. A change of 0.004 is an overhead of 0.4 %. The
        processor time of the thread that drains the rings counts to the calls that it drains.

    Raises:
        ExperimentError: `PERTOKEN=0` switches recording off, the plan is none or cannot be
            followed, or `budget` is not above 0 and below 1.
        SelectionError: `model` or `modules` is not what `profile` takes.
        RecordingStateError: as many recordings run as a process can hold.
    """
    given: object = budget  # what is no number is for the plan to refuse
    is_used = plan is None or sampled
    if is_used and is_number(given) and not 0 < given < 1:
        # Of a budget of 0, no number of pairs may ever tell on which side the cost is.
        raise ExperimentError(
            f"budget={budget!r}: give a share of the time, above 0 and below 1, such as 0.01; 0.01 "
            "is 1 %, and 1 is 100 %"
        )
    last = None
    for last in overhead_looks(
        model,
        run,
        modules=modules,
        recording_budget=budget if sampled else None,
        plan=checked_plan(Plan(margin=budget) if plan is None else plan),
        clock=clock,
    ):
        if on_look is not None:
            on_look(last)
    assert last is not None
    return last


def overhead_looks(
    model: torch.nn.Module,
    run: Callable[[], object],
    *,
    modules: ModuleSelection,
    plan: Plan,
    recording_budget: float | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Iterator[Result]:
    """As `measure_overhead`, giving the result after every pair."""
    if not callable(run):
        raise ExperimentError("run: give a callable without arguments that runs the model once")
    recording = profile(
        model,
        modules=modules,
        budget=recording_budget,
        memory_limit_bytes=_MEMORY_LIMIT_BYTES,
    )
    if not recording.enabled:
        raise ExperimentError("PERTOKEN=0 switches recording off: unset it to measure its cost")
    own = RandomState()
    switch = _Switch(recording)
    variants = (
        _Runs(run, NAMES[0], clock, own, switch),
        _RecordedRuns(run, NAMES[1], clock, own, switch),
    )
    running = variant_looks(
        variants, plan, names=NAMES, clock=clock, notes=lambda: _loss_notes(recording)
    )
    recording.start()
    try:
        while True:
            try:
                look = next(running, None)
            finally:  # each time the caller's own code goes on
                own.restore()
                switch.leave()
            if look is None:
                return
            yield look
    finally:
        recording.stop()


class _Switch:
    """Has the model recorded or not, outside of what is timed."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._is_in = True  # once it has started

    def turn(self, is_in: bool) -> None:
        """Goes to a state from the other one.

        What has just run changes the caches and slows the next calls, and so the same has to have
        run before all blocks.
        """
        self._move(not is_in)
        self._move(is_in)

    def leave(self) -> None:
        """Has the model run without the recording."""
        self._move(False)

    def _move(self, is_in: bool) -> None:
        if is_in != self._is_in:
            (self.recording.enter_model if is_in else self.recording.leave_model)()
            self._is_in = is_in


class _Runs:
    """Calls of the run, each from the same state of the random generators."""

    shares_noise = True  # the same work in the same process, recorded or not
    is_recorded = False

    def __init__(
        self,
        run: Callable[[], object],
        name: str,
        clock: Clock,
        state: RandomState,
        switch: _Switch,
    ) -> None:
        self._state = state
        self._switch = switch
        self._calls = TimedCalls(lambda: _finished(run()), name, clock)

    def calls(self, count: int) -> list[Call]:
        """Makes so many calls after one that pays for the switch and does not count."""
        self._switch.turn(self.is_recorded)
        self._call()
        return [self._call() for _ in range(count)]

    def _call(self) -> Call:
        self._state.restore()
        return self._calls.calls(1)[0]


class _RecordedRuns(_Runs):
    """The same with a recording's wrappers in the model, which come and go outside what is timed.

    The recording itself runs all the time, so that its drain thread keeps to its usual period: what
    a round of that takes hardly depends on how much it finds.
    """

    is_recorded = True
    _drained_ns: int | None = None
    # Since draining last took any time: the calls that were made, and those that count.
    _made = 0
    _counted = 0

    def calls(self, count: int) -> list[Call]:
        """Makes so many calls; what draining took since it last took any counts to them.

        As if the model had waited for it, with the rounds while nothing is recorded. What it
        drained came from calls that do not count, too: they bear their part.
        """
        recorder = self._switch.recording.recorder
        if self._drained_ns is None:
            self._drained_ns = recorder.drain_cpu_ns  # to begin with: once, and no call's
        taken = super().calls(count)
        self._made += 1 + count
        self._counted += count
        drained_ns = recorder.drain_cpu_ns - self._drained_ns
        if not taken or not drained_ns:
            return taken
        added_ns = drained_ns * self._counted / self._made / count
        self._drained_ns += drained_ns
        self._made = self._counted = 0
        return [_with_added(call, added_ns) for call in taken]


def _with_added(call: Call, added_ns: float) -> Call:
    """The call with so much more time, in equal parts of the values of each quantity."""
    return {quantity: values + added_ns / len(values) for quantity, values in call.items()}


def _finished(returned: Any) -> Any:
    """What a run returned, once the GPU has finished it."""
    torch = sys.modules["torch"]
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return returned


def _loss_notes(recording: Recording) -> list[str]:
    """What was not recorded cost nothing: then less was measured than was asked."""
    counts = recording.recorder.status()
    faults = counts["faults"] + sum(recording.faults.values())
    notes = []
    if counts["records_dropped"]:
        notes.append(f"{counts['records_dropped']} records were dropped, whose cost is missing")
    if faults:
        notes.append(f"{faults} faults while recording: the cost may be another without them")
    if not sum(counts["steps"]):
        notes.append("run() never called the model: what was measured is not the cost of recording")
    return notes
