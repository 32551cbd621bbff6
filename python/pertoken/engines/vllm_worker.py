"""The adapter of vLLM: its workers' steps, and, where it is in the same process, its scheduler.

vLLM's classes are wrapped while anything is recorded. A worker gets the rows of each step from a
scheduler, and gives back the tokens that were sampled. With one GPU, the scheduler is in the
worker's process; then it tells besides when requests arrived and how they ended, and which of the
tokens they kept. All that is read is host data.
"""

from __future__ import annotations

import inspect
import sys
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pertoken import _native, patch
from pertoken.after_import import after_import
from pertoken.engines import listeners
from pertoken.engines.engine import Engine, EngineStep
from pertoken.engines.listeners import guarded
from pertoken.engines.requests import UNFINISHED
from pertoken.engines.vllm_rows import VllmRows

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
    from vllm.v1.request import Request
    from vllm.v1.worker.worker_base import WorkerWrapperBase

_WORKER = "vllm.v1.worker.worker_base"
_SCHEDULER = "vllm.v1.core.sched.scheduler"
_MAX_PENDING = 64  # outputs of a scheduler whose workers are elsewhere, or which never come back

RUNS_AHEAD = (
    "vLLM schedules asynchronously: tokens count when their step was launched, which is before "
    "they were sampled."
)


class _Pending:
    """A scheduler's output that has not come back to it.

    Attributes:
        output: held, so that its identity stays its own.
        step: what a worker in this process made of it.
    """

    def __init__(self, output: SchedulerOutput) -> None:
        self.output = output
        self.step: EngineStep | None = None


class _Worker:
    """One worker: its engine, and the step that it is in."""

    def __init__(self, wrapper: WorkerWrapperBase) -> None:
        config = wrapper.vllm_config
        self.runs_ahead = bool(config.scheduler_config.async_scheduling)
        self.model = id(wrapper.worker.get_model())
        self.engine = Engine(model=wrapper.worker.get_model())
        self.rows = VllmRows(
            context_is_exact=not (self.runs_ahead and config.speculative_config is not None)
        )
        self.open: EngineStep | None = None  # between execute_model and the end of the sampling
        self.tells_commits = True  # of the open step; else the scheduler does
        self.has_missed = False  # what went on between two recordings
        self._told: weakref.WeakSet[Any] = weakref.WeakSet()

    def begin(self, output: SchedulerOutput, scheduler: Scheduler | None) -> EngineStep | None:
        """Begins the step of a scheduler's output; None where there is nothing to run."""
        self.end_open(None)
        if self.has_missed:
            self._close_gone(output, scheduler)
        for request in output.finished_req_ids:
            self.rows.forget(request)
            if scheduler is None:
                self.engine.request_finished(request)
        if not output.total_num_scheduled_tokens:
            return None
        rows = self.rows.rows_of(output)
        new = {data.req_id for data in output.scheduled_new_reqs}
        for row in rows:
            request = str(row.request)
            if not self.engine.has_open(request):
                self._meet(request, request in new, scheduler)
        if self.runs_ahead:
            self._tell_that_it_runs_ahead()
        self.open = self.engine.step(rows).__enter__()
        self.tells_commits = scheduler is None
        return self.open

    def _meet(self, request: str, is_new: bool, scheduler: Scheduler | None) -> None:
        known = None if scheduler is None else scheduler.requests.get(request)
        if known is not None:
            self.arrive(known, in_progress=not is_new)
        else:
            self.engine.request_arrived(
                request, tokens_in=self.rows.prompt_of(request), in_progress=not is_new
            )

    def arrive(self, request: Request, *, in_progress: bool = False) -> None:
        """Opens a request of a scheduler in this process, as of when the front end got it."""
        self.engine.request_arrived(
            request.request_id,
            tokens_in=request.num_prompt_tokens,
            ago_ns=max(round((time.time() - request.arrival_time) * 1e9), 0),
            in_progress=in_progress,
        )

    def _close_gone(self, output: SchedulerOutput, scheduler: Scheduler | None) -> None:
        """Closes what may have ended while nothing was recorded."""
        alive = output.num_scheduled_tokens if scheduler is None else scheduler.requests
        for request in self.engine.open_requests:
            if request not in alive:
                self.rows.forget(str(request))
                self.engine.request_finished(request, error=UNFINISHED)
        self.has_missed = False

    def _tell_that_it_runs_ahead(self) -> None:
        for listener in listeners.running():
            if listener not in self._told and listener.records(self.model):
                self._told.add(listener)
                listener.unknown(RUNS_AHEAD)

    def end_open(self, error: type[BaseException] | None) -> None:
        """Ends the step that is open."""
        step, self.open = self.open, None
        if step is not None:
            step.__exit__(error, None, None)


def _sampled(output: ModelRunnerOutput, rows: int) -> dict[str, int] | None:
    """Tokens by request; None where this worker does not get them."""
    if rows and not output.req_ids:  # a stage of a pipeline before the last
        return None
    tokens = output.sampled_token_ids or [[]] * len(output.req_ids)  # none where it pools
    return {name: len(ids) for name, ids in zip(output.req_ids, tokens, strict=True)}


def _commit(engine: Engine, step: EngineStep, output: ModelRunnerOutput) -> None:
    tokens = _sampled(output, len(step.rows))
    if tokens is not None:
        # A scheduler that runs ahead throws away what was sampled for requests that had ended.
        step.committed({name: n if engine.has_open(name) else 0 for name, n in tokens.items()})


class _Watch:
    """The wrappers in vLLM's classes, and what they have met."""

    def __init__(self) -> None:
        self._recordings = 0
        self._installed: list[tuple[Any, str, Any]] = []
        self._workers: weakref.WeakKeyDictionary[Any, _Worker] = weakref.WeakKeyDictionary()
        # By the worker inside the wrapper: what samples does not know of the wrapper.
        self._by_inner: weakref.WeakKeyDictionary[Any, _Worker] = weakref.WeakKeyDictionary()
        self._scheduled: dict[int, tuple[_Pending, weakref.ref[Any]]] = {}  # by its identity
        # Outputs that are still on the device, with their steps.
        self._awaited: weakref.WeakKeyDictionary[Any, tuple[_Worker, EngineStep, bool]] = (
            weakref.WeakKeyDictionary()
        )

    def install(self) -> None:
        self._recordings += 1
        self.look_again()

    def look_again(self) -> None:
        """Wraps what has been imported since the recordings began."""
        if not self._recordings or "vllm" not in sys.modules:
            return
        for module in (_WORKER, _SCHEDULER):
            if module not in sys.modules:
                after_import(module, _imported)
        self._wrap(_WORKER, "WorkerWrapperBase", "execute_model", self._begin, self._executed)
        self._wrap(_SCHEDULER, "Scheduler", "add_request", self._request_of, self._added)
        self._wrap(_SCHEDULER, "Scheduler", "schedule", _scheduler_of, self._schedule)
        self._wrap(
            _SCHEDULER, "Scheduler", "update_from_output", self._before_update, self._updated
        )
        self._wrap(_SCHEDULER, "Scheduler", "finish_requests", _scheduler_of, self._finished)

    def remove(self) -> None:
        self._recordings -= 1
        if self._recordings:
            return
        for owner, name, wrapper in reversed(self._installed):
            patch.take_out(owner, name, wrapper)
        self._installed.clear()
        self._scheduled.clear()
        self._awaited.clear()
        for worker in self._workers.values():
            worker.has_missed = True

    def _wrap(self, module: str, cls: str, name: str, before: Any, after: Any) -> None:
        owner = getattr(sys.modules.get(module), cls, None)
        if owner is None:
            return
        if not callable(owner.__dict__.get(name)):
            self._say_unknown(f"{cls}.{name}")
            return
        self._put(owner, name, before, after)

    def _put(self, owner: Any, name: str, before: Any, after: Any) -> None:
        if any(held is owner and of == name for held, of, _ in self._installed):
            return
        before, after = guarded(f"vLLM, {name}", before), guarded(f"vLLM, {name}", after)
        wrapper = patch.put(
            owner,
            name,
            inspect.getattr_static(owner, name),
            lambda inner: _native.MethodCall(inner, before, after),
        )
        self._installed.append((owner, name, wrapper))

    def _say_unknown(self, missing: str) -> None:
        """Of another vLLM nothing is guessed; whoever records is told so."""
        for listener in listeners.running():
            listener.unknown(f"This vLLM is not known to pertoken (it has no {missing}).")

    # The worker

    def _begin(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        if not _native.is_recording():
            return None
        wrapper, output = args[0], args[1] if len(args) > 1 else (kwargs or {})["scheduler_output"]
        worker = self._worker_of(wrapper)
        pending, scheduler = self._scheduled.get(id(output), (None, _nobody))
        step = worker.begin(output, scheduler())
        if step is not None and pending is not None:
            pending.step = step
        return None if step is None else (worker, step)

    def _worker_of(self, wrapper: WorkerWrapperBase) -> _Worker:
        worker = self._workers.get(wrapper)
        if worker is None or worker.model != id(wrapper.worker.get_model()):
            worker = _Worker(wrapper)
            self._workers[wrapper] = self._by_inner[wrapper.worker] = worker
        cls = _holder(type(wrapper.worker), "sample_tokens")
        if cls is not None:
            self._put(cls, "sample_tokens", self._sample, self._executed)
        return worker

    def _sample(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        worker = self._by_inner.get(args[0])
        return None if worker is None or worker.open is None else (worker, worker.open)

    def _executed(self, token: tuple[_Worker, EngineStep], result: Any, error: Any) -> None:
        """The forward has run, or the sampling: whichever gives a result ends the step."""
        worker, step = token
        if result is None and error is None:
            return
        tells = worker.tells_commits and error is None
        if error is None and hasattr(result, "get_output"):
            if worker.runs_ahead:
                worker.end_open(None)
            # Else the wait for the tokens, which comes now, is part of the step.
            if tells or not worker.runs_ahead:
                self._await_output(result, worker, step, tells)
            return
        worker.end_open(error)
        if tells:
            _commit(worker.engine, step, result)

    def _await_output(
        self, output: AsyncModelRunnerOutput, worker: _Worker, step: EngineStep, tells: bool
    ) -> None:
        cls = _holder(type(output), "get_output")
        if cls is not None:
            self._awaited[output] = worker, step, tells
            self._put(cls, "get_output", self._get_output, self._got_output)

    def _get_output(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        return self._awaited.pop(args[0], None)

    def _got_output(self, token: tuple[_Worker, EngineStep, bool], result: Any, error: Any) -> None:
        worker, step, tells = token
        if worker.open is step:
            worker.end_open(error)
        if tells and error is None:
            _commit(worker.engine, step, result)

    # The scheduler

    def _workers_now(self) -> Iterator[_Worker]:
        return iter(list(self._workers.values()))

    def _request_of(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        return args[1] if len(args) > 1 else (kwargs or {})["request"]

    def _added(self, request: Request, result: Any, error: Any) -> None:
        if error is None:
            for worker in self._workers_now():
                if not worker.engine.has_open(request.request_id):
                    worker.arrive(request)

    def _schedule(self, scheduler: Scheduler, result: Any, error: Any) -> None:
        if result is None:
            return
        self._scheduled[id(result)] = _Pending(result), weakref.ref(scheduler)
        if len(self._scheduled) > _MAX_PENDING:
            del self._scheduled[next(iter(self._scheduled))]

    def _before_update(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        scheduler: Scheduler = args[0]
        output = args[1] if len(args) > 1 else (kwargs or {})["scheduler_output"]
        pending, _ = self._scheduled.pop(id(output), (None, _nobody))
        if pending is None or pending.step is None:
            return None
        requests = [scheduler.requests.get(str(row.request)) for row in pending.step.rows]
        return pending.step, [
            (request, request.num_output_tokens) for request in requests if request is not None
        ]

    def _updated(self, token: Any, result: Any, error: Any) -> None:
        step, before = token
        if error is not None:
            return
        step.committed(
            {request.request_id: request.num_output_tokens - count for request, count in before}
        )
        for request, _ in before:
            if request.is_finished():
                self._end(request)

    def _finished(self, scheduler: Scheduler, result: Any, error: Any) -> None:
        for request in result or ():
            self._end(request)

    def _end(self, request: Request) -> None:
        name = request.status.name
        error = {"FINISHED_ABORTED": "cancelled", "FINISHED_ERROR": "error"}.get(name, "")
        for worker in self._workers_now():
            worker.engine.request_finished(request.request_id, error=error)


def _scheduler_of(args: tuple[Any, ...], kwargs: Any) -> Any:
    return args[0]


def _nobody() -> None:
    """In the place of a reference to a scheduler in this process."""


def _holder(cls: type, name: str) -> type | None:
    """The class that a method is defined in."""
    return next((base for base in cls.__mro__ if name in base.__dict__), None)


_watch = _Watch()


def install() -> None:
    """Begins to tell of vLLM's workers in this process. Under the change lock."""
    _watch.install()


def _imported(module: Any) -> None:
    look_again()


def look_again() -> None:
    """Wraps what vLLM has imported since recordings began."""
    with patch.change_lock:
        _watch.look_again()


def remove() -> None:
    """Takes one `install` back."""
    _watch.remove()
