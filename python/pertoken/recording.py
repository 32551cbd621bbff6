"""The live side: the `Recording` that `profile(model)` gives."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pertoken import _native, seeds
from pertoken.abandoned import abandon
from pertoken.assembly import assemble
from pertoken.compiled_layers import CompiledLayers
from pertoken.device_timing import DeviceChoice, DeviceTiming, check_choice
from pertoken.dumps import Dumps, dump, dumps_by
from pertoken.errors import RecordingStateError
from pertoken.fault_log import FaultLog
from pertoken.generation import GenerateWatch, inner_roots
from pertoken.graph_captures import GraphCaptures
from pertoken.identity import Ranks, group_ranks
from pertoken.instrument import Instrumentation, unwrap_compiled
from pertoken.observing import NOTHING_OBSERVED, Observed, Observing
from pertoken.patch import change_lock
from pertoken.record_costs import record_costs
from pertoken.recording_arguments import check_arguments
from pertoken.recording_meta import lasting_meta, model_facts
from pertoken.request_log import RequestLog
from pertoken.result import Profile
from pertoken.retention import retention
from pertoken.sampling import checked_budget, cost_facts, sample
from pertoken.scopes import entered_round
from pertoken.selection import ModuleSelection, lasting_selection, select_modules
from pertoken.spool_folder import SpoolFolder
from pertoken.spool_notes import SpoolNotes
from pertoken.status import StatusLog, describe_status
from pertoken.totals import Totals
from pertoken.totals_reading import read_totals
from pertoken.triggers import Trigger

if TYPE_CHECKING:
    import torch

    from pertoken.summary import Summary

logger = logging.getLogger("pertoken")
F = TypeVar("F", bound=Callable[..., Any])

_RING_RECORDS = 1 << 16
_BYTES_A_REQUEST = 2048  # what a request in the log takes, roughly


class Recording:
    """What is being recorded. Made by `profile()`; starts when its context is entered.

    It may be started and stopped many times, from any thread; steps keep their numbers. It holds
    the model until it is stopped (not with `holds_model` False), and stops when nobody holds it
    any longer.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        modules: ModuleSelection,
        memory_limit_bytes: int,
        budget: float | None = None,
        log_interval_s: float | None = None,
        device: DeviceChoice = "auto",
        keep: str | int | None = None,
        triggers: Sequence[Trigger] = (),
        dump_folder: str | os.PathLike[str] = "pertoken-dumps",
        dumps_per_hour: int = 6,
        spool: str | os.PathLike[str] | None = None,
        compiled_layers: bool = False,
        holds_model: bool = True,
        observed: Observed = NOTHING_OBSERVED,
    ) -> None:
        check_arguments(model, memory_limit_bytes, log_interval_s)
        check_choice(device)
        self.device_timing = DeviceTiming(device)
        self.budget = checked_budget(budget)
        kept = retention(keep)
        memory_limit_bytes = kept.memory_bytes or int(memory_limit_bytes)
        self.memory_limit_bytes = memory_limit_bytes
        self._dumps: Dumps | None = dumps_by(triggers, dump_folder, dumps_per_hour)
        self.enabled = os.environ.get("PERTOKEN", "") != "0"
        self._modules = modules = lasting_selection(modules)
        selected, self.detail = select_modules(unwrap_compiled(model), self._modules)
        self._holds_model = holds_model
        self._selected: dict[str, torch.nn.Module] | None = selected
        self.selection = modules if isinstance(modules, str) else self.detail
        self.model_facts = model_facts(unwrap_compiled(model))
        self._model_ref = weakref.ref(model)
        self._held_model: torch.nn.Module | None = model if holds_model else None
        self.faults = FaultLog()
        self.origin_ticks = 0
        self.origin_unix_ns = 0
        self.stopped_ticks = 0  # 0 while it runs
        self._earlier_ns = 0  # for how long it ran before it was last started
        self._running_since_ns = 0  # by the monotonic clock; 0: it does not run
        self.recorder = _native.Recorder(
            memory_limit_bytes * 7 // 8,
            _RING_RECORDS,
            kept.time_ns,
            observe_every=observed.every,
            observe_seed=seeds.new_seed(),
        )
        self._observed = observed
        self.observing = Observing(self.recorder, observed, unwrap_compiled(model))
        self.observing.select(unwrap_compiled(model))
        self.skipped = self.observing.skipped
        log_size = max(1024, memory_limit_bytes // 8 // _BYTES_A_REQUEST)
        self.log = RequestLog(log_size, self.recorder)
        self.graph_captures = GraphCaptures(self.recorder, self.observing.observer)
        self.instrumentation = Instrumentation(
            makes_cycles=holds_model,
            compiled_layers=CompiledLayers(self.recorder) if compiled_layers else None,
        )
        self.ranks: Ranks | None = None  # in the process group, when it last started
        self.generate_watch = GenerateWatch(self.recorder, self.log, self.faults.note)
        self._spool = None if spool is None else SpoolFolder(spool, memory_limit_bytes)
        self._log_interval_s = log_interval_s
        self._status_log: list[StatusLog] = []  # the one that runs
        self._depth = 0
        # Nothing in the model refers to the recording, so that it goes when its last holder does.
        weakref.finalize(
            self,
            abandon,
            self.instrumentation,
            self.generate_watch,
            self.graph_captures,
            self.recorder,
            self._status_log,
            self.observing,
            self._spool,
            self._dumps,
        )

    def start(self) -> None:
        """Starts recording; does nothing while it runs, or in a process forked from the recording.

        Raises:
            DeviceError: with ``device="cuda"``, where there is no GPU to time.
            RecordingStateError: as many recordings run as a process can hold, or the model is
                gone, which a stopped recording does not hold; or a signal cannot be a trigger here.
            SelectionError: the model has changed, and `modules` selects nothing any longer.
            PertokenError: the folder of `spool` or of the dumps cannot be written.
        """
        with change_lock:
            if self.recorder.active or not self.enabled:
                return
            model = self._existing_model()
            root = unwrap_compiled(model)
            selected = self._selected or select_modules(root, self._modules)[0]
            observed = self.observing.select(root)
            if not self.origin_ticks:
                self.origin_ticks, self.origin_unix_ns = _native.now_ticks(), _native.unix_time_ns()
            self.device_timing.start(root, self.recorder)
            self.model_facts = model_facts(root)
            self.ranks = group_ranks() or self.ranks
            if self._spool is not None:
                self._begin_spool(self._spool, selected)
            self._sample(root, selected, observed)
            if self._dumps is not None or self._log_interval_s is not None:
                # Their threads tell of the cost. None of them may be the first to measure it: when
                # the process ends inside torch's operators, a daemon thread there aborts it.
                record_costs()
            _start(self.recorder)
            if not self.recorder.active:
                return
            self.stopped_ticks = 0
            self._running_since_ns = time.monotonic_ns()
            if self._holds_model:
                self._held_model = model
            else:
                self._selected = None
            try:
                self._put_in(model, selected, observed)
                if self._dumps is not None:
                    self._dumps.start(self)
            except BaseException:
                self.stop()
                raise
            if self._log_interval_s is not None:
                self._status_log.append(StatusLog(self, self._log_interval_s, logger))

    def stop(self) -> None:
        """Stops recording and leaves the model as it was; does nothing when it does not run.

        Returns as soon as the model runs free; what was recorded is drained behind.
        """
        with change_lock:
            if not self.recorder.active and not self.instrumentation.is_installed:
                return
            self._take_out(for_good=True)
            self.recorder.stop()
            if self._dumps is not None:
                self._dumps.end(self)
            self.stopped_ticks = _native.now_ticks()
            self._earlier_ns, self._running_since_ns = self.recorded_ns, 0
            if self.log.notes is not None:
                self.log.notes.state(runs=False, recorded_ns=self._earlier_ns)
            while self._status_log:
                self._status_log.pop().end()
            self._held_model = self._selected = None

    def leave_model(self) -> None:
        """Has the model run as without the recording, which otherwise goes on.

        The wrappers round `generate()` stay where they can, and hand calls on.
        """
        with change_lock:
            self._take_out(for_good=False)

    def enter_model(self) -> None:
        """Records the model again.

        Raises:
            RecordingStateError: the model is gone.
            SelectionError: it has changed, and `modules` selects nothing any longer.
        """
        with change_lock:
            root = unwrap_compiled(model := self._existing_model())
            if self.instrumentation.is_aside:
                self.instrumentation.bring_back()
                self.generate_watch.go_on()
                self._see_captures(root)
                return
            selected = self._selected or select_modules(root, self._modules)[0]
            self._put_in(model, selected, self.observing.select(root))

    def __enter__(self) -> Recording:
        """Starts recording."""
        with change_lock:
            self.start()
            self._depth += 1
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        """Stops recording, when the outermost of nested entries is left."""
        with change_lock:
            self._depth -= 1
            if self._depth == 0:
                self.stop()

    def __call__(self, function: F) -> F:
        """Wraps a function so that the recording runs during each call of it."""
        return entered_round(self, function)

    def _existing_model(self) -> torch.nn.Module:
        model: torch.nn.Module | None = self._model_ref()
        if model is None:
            raise RecordingStateError("the model of this recording does not exist any longer")
        return model

    def _sample(
        self,
        root: torch.nn.Module,
        selected: dict[str, torch.nn.Module],
        observed: dict[str, torch.nn.Module],
    ) -> frozenset[str]:
        return sample(
            self.recorder,
            self.budget,
            root,
            selected,
            self.detail,
            observed,
            self._observed,
        )

    def _put_in(
        self,
        model: torch.nn.Module,
        selected: dict[str, torch.nn.Module],
        observed: dict[str, torch.nn.Module],
    ) -> None:
        root = unwrap_compiled(model)
        inner = inner_roots(root)
        self.generate_watch.install([root, *inner.values()])
        self.instrumentation.install(
            model,
            selected,
            inner,
            self.recorder,
            self.generate_watch.generation_var,
            observed,
            self.observing.observer,
            self.device_timing.device_of,
            self._sample(root, selected, observed),
        )
        self._see_captures(root)

    def _take_out(self, for_good: bool) -> None:
        if not for_good and self.instrumentation.set_aside():
            self.generate_watch.pause()
        else:
            self.instrumentation.remove()
            self.generate_watch.remove()
        self.graph_captures.remove()
        self.observing.stop()

    def _see_captures(self, root: torch.nn.Module) -> None:
        if self.device_timing.devices:
            self.graph_captures.install()
        self.observing.start(root)

    @property
    def model(self) -> torch.nn.Module | None:
        """What is recorded; None when it does not exist any longer."""
        return self._model_ref()

    @property
    def is_recording(self) -> bool:
        """Whether it records now."""
        return bool(self.recorder.active)

    def result(self) -> Profile:
        """Everything recorded so far and still held, as an immutable `Profile`; at any time."""
        return assemble(self)

    def summary(self) -> Summary:
        """The summary of what was recorded so far."""
        return self.result().summary()

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Writes what was recorded so far for Perfetto and chrome://tracing.

        Raises:
            PertokenError: the file cannot be written.
        """
        self.result().export_chrome_trace(path)

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Writes what is held to a file, which is a profile; at any time, from any thread.

        Raises:
            PertokenError: the file cannot be written.
        """
        dump(self, path, {"reason": "by_hand"})

    @property
    def dumps(self) -> tuple[Path, ...]:
        """The files that triggers have given, oldest first.

        Once the recording has stopped, this waits for what had fired to be written, at most ten
        seconds.
        """
        return () if self._dumps is None else self._dumps.written()

    def status(self) -> str:
        """One line for a person: what runs, for how long, what it holds, lost and costs.

        The cost is an estimate: what one record of each type costs on this machine, times their
        number, and the processor time of the thread that drains them, over the time of the steps.
        The first call in a process measures these costs, which takes some 200 ms; with
        triggers or `log_interval_s`, `start()` has.
        """
        return describe_status(self)

    @property
    def recorded_ns(self) -> int:
        """For how long it has recorded, pauses excluded."""
        since_ns = self._running_since_ns
        return self._earlier_ns + (time.monotonic_ns() - since_ns if since_ns else 0)

    def held_bytes(self, store_bytes: int) -> int:
        """What counts to the memory limit: the store's bytes, and about those of the requests."""
        return store_bytes + len(self.log.requests) * _BYTES_A_REQUEST

    def cost_facts(self) -> dict[str, Any]:
        """What its profiles state of what it costs: `meta["cost"]`."""
        return cost_facts(self)

    def totals(self) -> Totals:
        """Counts and latencies since the start, evicted steps included; a copy at one moment.

        The model's thread does not wait for it, and nothing of the trace is copied. What is open,
        such as a request that runs, is counted as begun; its latencies count when it ends.
        """
        return read_totals(self)

    @property
    def unknown_commits(self) -> bool:
        """Whether some `generate()` ran whose steps do not tell how much they commit."""
        return self.log.has_unknown_commits

    def lasting_meta(self) -> dict[str, Any]:
        """What the `meta` of a profile says of the process and the model."""
        return lasting_meta(self)

    def thread_names(self) -> dict[int, str]:
        """The names of the threads that run now, by their ids."""
        return {
            thread.native_id: thread.name
            for thread in threading.enumerate()
            if thread.native_id is not None
        }

    def _begin_spool(self, spool: SpoolFolder, selected: dict[str, torch.nn.Module]) -> None:
        spool.make(self.recorder)
        spool.identify(
            {
                "meta": self.lasting_meta(),
                "origin_ticks": self.origin_ticks,
                "origin_unix_ns": self.origin_unix_ns,
                "detail": self.detail,
                "modules": list(selected),
            }
        )
        self.log.notes = self.log.notes or SpoolNotes(self.recorder)
        self.log.notes.state(runs=True, recorded_ns=self._earlier_ns)
        self.faults.spooled = self.log.notes.fault

    def __repr__(self) -> str:
        """One line: what is recorded and whether it runs."""
        state = "recording" if self.is_recording else "stopped"
        return f"<pertoken.Recording of {self.model_facts['class']}, {self.detail}, {state}>"


def _start(recorder: Any) -> None:
    try:
        recorder.start()
        return
    except RuntimeError:
        gc.collect()  # tracebacks hold recordings in cycles, which run until they are found
    try:
        recorder.start()
    except RuntimeError as error:
        raise RecordingStateError(str(error)) from None
