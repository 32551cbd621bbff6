"""The live side: `profile(model)` and the `Recording` that it gives."""

from __future__ import annotations

import gc
import logging
import os
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pertoken import _native
from pertoken.assembly import assemble
from pertoken.errors import RecordingStateError, SelectionError
from pertoken.generation import GenerateWatch, RequestLog, inner_roots
from pertoken.identity import Ranks, group_ranks
from pertoken.instrument import Instrumentation, unwrap_compiled
from pertoken.patch import change_lock
from pertoken.result import Profile
from pertoken.schema import STEP_KINDS
from pertoken.scopes import entered_round
from pertoken.selection import ModuleSelection, select_modules

if TYPE_CHECKING:
    import torch

    from pertoken.summary import Summary

logger = logging.getLogger("pertoken")
F = TypeVar("F", bound=Callable[..., Any])

_RING_RECORDS = 1 << 16
_MIN_MEMORY_BYTES = 1 << 20
_BYTES_A_REQUEST = 2048  # what a request in the log takes, roughly


def profile(
    model: torch.nn.Module,
    *,
    modules: ModuleSelection = "layers",
    memory_limit_bytes: int = 256 << 20,
) -> Recording:
    """Records every step of a model, as a context manager or as a decorator.

    Args:
        model: any ``torch.nn.Module``; what ``torch.compile(module)`` returns counts as the module.
        modules: which modules get spans, besides the model itself: ``"root"`` none, ``"layers"``
            each repeated block with its attention and feed-forward parts, the embeddings and the
            head, ``"all"`` every one; or a glob pattern over module names, a list of patterns, or
            a predicate ``f(name, module) -> bool``.
        memory_limit_bytes: how much the trace may hold; past it the oldest steps go, whole, and
            are counted in ``losses``. Totals since the start are not affected.

    Raises:
        SelectionError: `model` is not a module, or `modules` selects nothing.
    """
    return Recording(model, modules=modules, memory_limit_bytes=memory_limit_bytes)


class Recording:
    """What is being recorded. Made by `profile()`; starts when its context is entered.

    It may be started and stopped many times, from any thread; steps keep their numbers. It holds
    the model until it is stopped, and stops when nobody holds it any longer.
    """

    def __init__(
        self, model: torch.nn.Module, *, modules: ModuleSelection, memory_limit_bytes: int
    ) -> None:
        torch_module = sys.modules.get("torch")
        if torch_module is None or not isinstance(model, torch_module.nn.Module):
            raise SelectionError(
                f"profile() takes a torch.nn.Module, not {type(model).__name__}; "
                "to profile a pipeline, pass its .model"
            )
        if memory_limit_bytes < _MIN_MEMORY_BYTES:
            raise SelectionError(
                f"memory_limit_bytes={memory_limit_bytes}: give at least {_MIN_MEMORY_BYTES}"
            )
        self.enabled = os.environ.get("PERTOKEN", "") != "0"
        if isinstance(modules, Iterable) and not isinstance(modules, str):
            modules = list(modules)  # selected from again at each start
        self._modules = modules
        selected, self.detail = select_modules(unwrap_compiled(model), self._modules)
        self._selected: dict[str, torch.nn.Module] | None = selected
        self.selection = modules if isinstance(modules, str) else self.detail
        self.model_facts = _describe(unwrap_compiled(model))
        self._model_ref = weakref.ref(model)
        self._held_model: torch.nn.Module | None = model
        self.faults = FaultLog()
        self.origin_ticks = 0
        self.origin_unix_ns = 0
        self.stopped_ticks = 0  # 0 while it runs
        self.log = RequestLog(limit=max(1024, memory_limit_bytes // 8 // _BYTES_A_REQUEST))
        self.recorder = _native.Recorder(memory_limit_bytes * 7 // 8, _RING_RECORDS)
        self.instrumentation = Instrumentation()
        self.ranks: Ranks | None = None  # in the process group, when it last started
        self._watch = GenerateWatch(self.recorder, self.log, self.faults.note)
        self._depth = 0
        # Nothing in the model refers to the recording, so that it goes when its last holder does.
        weakref.finalize(self, _abandon, self.instrumentation, self._watch, self.recorder)

    def start(self) -> None:
        """Starts recording; does nothing while it runs, or in a process forked from the recording.

        Raises:
            RecordingStateError: as many recordings run as a process can hold, or the model is
                gone, which a stopped recording does not hold.
            SelectionError: the model has changed, and `modules` selects nothing any longer.
        """
        with change_lock:
            if self.recorder.active or not self.enabled:
                return
            model = self._model_ref()
            if model is None:
                raise RecordingStateError("the model of this recording does not exist any longer")
            root = unwrap_compiled(model)
            selected = self._selected or select_modules(root, self._modules)[0]
            if not self.origin_ticks:
                self.origin_ticks, self.origin_unix_ns = _native.now_ticks(), _native.unix_time_ns()
            _start(self.recorder)
            if not self.recorder.active:
                return
            self.stopped_ticks = 0
            self.model_facts = _describe(root)
            self.ranks = group_ranks() or self.ranks
            self._held_model = model
            inner = inner_roots(root)
            try:
                self._watch.install([root, *inner.values()])
                self.instrumentation.install(
                    model,
                    selected,
                    inner,
                    self.recorder,
                    self._watch.generation_var,
                )
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Stops recording and leaves the model as it was; does nothing when it does not run.

        Returns as soon as the model runs free; what was recorded is drained behind.
        """
        with change_lock:
            if not self.recorder.active and not self.instrumentation.is_installed:
                return
            self.instrumentation.remove()
            self._watch.remove()
            self.recorder.stop()
            self.stopped_ticks = _native.now_ticks()
            self._held_model = self._selected = None

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
        """Writes what was recorded so far for Perfetto and chrome://tracing."""
        self.result().export_chrome_trace(Path(path))

    def totals(self) -> dict[str, Any]:
        """Counts and latencies since the start, evicted steps included, as plain data.

        Returns:
            ``steps``: by kind, how many ``begun`` and ``failed``, ``rows``, ``tokens_in`` and
            ``wall_ns``; ``sites``: by module or region and step kind, ``dur_ns``. Each latency is
            a dict of ``count``, ``sum``, ``min``, ``max``, ``p50``, ``p90``, ``p99`` in
            nanoseconds; percentiles are of histogram buckets 9 % wide.
        """
        native = self.recorder.totals()
        names = _native.site_names()
        kinds = (*STEP_KINDS, "")
        steps = {
            STEP_KINDS[row["kind"]]: {key: value for key, value in row.items() if key != "kind"}
            for row in native["steps"]
        }
        sites: dict[str, dict[str, Any]] = {}
        for code, kind, latency in native["sites"]:
            sites.setdefault(names[code][1], {})[kinds[kind]] = {"dur_ns": latency}
        return {"steps": steps, "sites": sites}

    @property
    def unknown_commits(self) -> bool:
        """Whether some `generate()` ran whose steps do not tell how much they commit."""
        return any(
            generation.by_generate and not generation.commits_known
            for generation in self.log.held()[1].values()
        )

    def __repr__(self) -> str:
        """One line: what is recorded and whether it runs."""
        state = "recording" if self.is_recording else "stopped"
        return f"<pertoken.Recording of {self.model_facts['class']}, {self.detail}, {state}>"


class FaultLog(Counter[str]):
    """Counts faults of a recording by reason; the first of each is logged."""

    def note(self, where: str, error: Exception) -> None:
        """Counts one."""
        reason = f"{where}: {type(error).__name__}: {error}"
        if reason not in self:
            logger.warning("pertoken: a fault while recording, in %s", reason)
        self[reason] += 1


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


def _abandon(instrumentation: Instrumentation, watch: GenerateWatch, recorder: Any) -> None:
    """Stops what a recording that is gone, or the end of the process, has left running."""
    recorder.stop()

    def remove() -> None:
        instrumentation.remove()
        watch.remove()

    change_lock.run_outside(remove)


def _describe(root: torch.nn.Module) -> dict[str, Any]:
    parameters = list(root.parameters())
    return {
        "class": type(root).__name__,
        "device": str(parameters[0].device) if parameters else "",
        "parameters": sum(parameter.numel() for parameter in parameters),
        "modules": sum(1 for _ in root.modules()),
    }
