"""The adapter of transformers' continuous batching: `generate_batch` and its manager.

Its classes are wrapped while a model that they may run is recorded, and act for such models only.
Requests are opened where they are added, on the caller's thread; all else is told from the
manager's own thread. What is read is host data: the batch as the scheduler made it, from which
transformers itself computes ``cu_seq_lens_q``.
"""

from __future__ import annotations

import inspect
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from pertoken import _native, patch
from pertoken.engines import listeners
from pertoken.engines.engine import Engine, EngineStep
from pertoken.engines.listeners import guarded
from pertoken.engines.requests import UNFINISHED
from pertoken.engines.row import Row

_PACKAGE = "transformers.generation.continuous_batching"
_MAX_PENDING_STEPS = 8
_CHILD = "__child#"  # between a request and the number of a further sequence of it


class _Manager:
    """What is known of one manager: its engine, and the steps whose tokens are to come."""

    def __init__(self, model: Any) -> None:
        self.engine = Engine(model=model)
        self._pending: dict[int, tuple[Any, EngineStep]] = {}  # by identity of the batch
        self.maybe_gone: set[Any] = set()  # open when the last recording ended

    def begin_step(self, processor: Any) -> EngineStep:
        """Tells the step that the processor is about to run."""
        batch = _batch_of(processor)
        if self.maybe_gone:
            self._forget_gone(processor)
        for future in batch:
            if not self.engine.has_open(future.state.request_id):
                self._meet(future, processor)
        step = self.engine.step([_row_of(future) for future in batch])
        self._pending[id(batch)] = (batch, step)
        if len(self._pending) > _MAX_PENDING_STEPS:
            del self._pending[next(iter(self._pending))]
        return step

    def _meet(self, future: Any, processor: Any) -> None:
        """A request that was not seen when it was added, or a further sequence of one that was."""
        state = future.state
        parent_id, is_child, _ = state.request_id.rpartition(_CHILD)
        parent = processor.scheduler.active_requests.get(parent_id) if is_child else None
        added = (parent or state).created_time
        prompt = state._true_initial_tokens or len(state.initial_tokens)
        begun = bool(state.generated_tokens) or len(state.initial_tokens) > prompt
        self.engine.request_arrived(
            state.request_id,
            tokens_in=prompt,
            ago_ns=round((time.perf_counter() - added) * 1e9),
            in_progress=begun or _context_of(future) >= len(state.initial_tokens),
            like=parent_id if is_child else None,
        )

    def _forget_gone(self, processor: Any) -> None:
        """Closes what has ended while nothing was recorded."""
        scheduler = processor.scheduler
        queued = {state.request_id for state in list(processor.input_queue.queue)}
        for request in self.maybe_gone - queued:
            if request not in scheduler.active_requests and (
                request not in scheduler.waiting_requests
            ):
                self.engine.request_finished(request, error=UNFINISHED)
        self.maybe_gone.clear()

    def begin_update(self, processor: Any) -> tuple[EngineStep, list[tuple[Any, int]]] | None:
        """The step whose tokens are about to be handed out, and how many each row has."""
        batch, step = self._pending.pop(id(_batch_of(processor)), (None, None))
        if batch is None or step is None:
            return None
        return step, [(future.state, len(future.state.generated_tokens)) for future in batch]

    def end_update(self, step: EngineStep, before: list[tuple[Any, int]]) -> None:
        """Tells what was handed out, and which requests that ended."""
        told = {state.request_id: state.generated_tokens[count:] for state, count in before}
        counts = {request: len(tokens) for request, tokens in told.items()}
        step.committed(counts, told if step.keeps_logits() else None)
        for state, _ in before:
            if state.status.name == "FINISHED":
                self.engine.request_finished(state.request_id)


def _batch_of(processor: Any) -> Any:
    """The requests of the batch that is run or handed out next; a new list for each batch."""
    held = processor.inputs_and_outputs
    if hasattr(held, "io_pairs"):  # two batches overlap
        held = held.io_pairs[held.current_pair].host_io
    return held.requests_in_batch


def _context_of(future: Any) -> int:
    """Tokens in the cache before the step, for which the position has been moved on already."""
    return int(future.state.position_offset - future.query_length)


def _row_of(future: Any) -> Row:
    state, context = future.state, _context_of(future)
    phase = "prefill" if context < len(state.initial_tokens) else "decode"
    # The chunks of a prompt before the last one commit nothing.
    committed = -1 if future.has_new_token else 0
    return Row(state.request_id, phase, future.query_length, context, committed)


class _Watch:
    """The wrappers in transformers' classes, and the managers that they have met."""

    def __init__(self) -> None:
        self._models: Counter[int] = Counter()  # recordings, by identity of a model
        self._managers: weakref.WeakKeyDictionary[Any, _Manager] = weakref.WeakKeyDictionary()
        self._installed: list[tuple[Any, str, Any]] = []
        # What runs: the request that is being added, and the manager that prepares a batch.
        self._adding: ContextVar[list[Any] | None] = ContextVar("pertoken_adding", default=None)
        self._preparing: ContextVar[Any] = ContextVar("pertoken_preparing", default=None)

    def install(self, models: Iterable[int]) -> None:
        # Also when transformers came after the first of the recordings that run.
        if not self._installed and f"{_PACKAGE}.continuous_api" in sys.modules:
            self._wrap_all()
        self._models.update(models)

    def remove(self, models: Iterable[int]) -> None:
        self._models.subtract(models)
        self._models = +self._models
        if self._models:
            return
        for owner, name, wrapper in reversed(self._installed):
            patch.take_out(owner, name, wrapper)
        self._installed.clear()
        for manager in self._managers.values():
            manager.maybe_gone = set(manager.engine.open_requests)

    def _wrap_all(self) -> None:
        wrapped: tuple[tuple[str, str, str, Any, Any], ...] = (
            ("continuous_api", "ContinuousBatchingManager", "add_request", self._add, self._added),
            ("requests", "RequestState", "__post_init__", self._make_state, None),
            ("continuous_api", "OutputRouter", "fail_and_deliver", self._fail, None),
            (
                "continuous_api",
                "ContinuousBatchProcessor",
                "prepare_next_batch",
                self._prepare,
                self._prepared,
            ),
            ("scheduler", "Scheduler", "clear_cancelled_requests", self._cancel, self._cancelled),
            (
                "continuous_api",
                "ContinuousBatchProcessor",
                "_generation_step",
                self._begin_step,
                self._end_step,
            ),
            (
                "continuous_api",
                "ContinuousBatchProcessor",
                "update_batch",
                self._begin_update,
                self._end_update,
            ),
            ("model_runner", "ModelRunner", "run_one_warmup", self._begin_warmup, self._end_step),
        )
        missing = []
        for module, cls, name, _, _ in wrapped:
            owner = getattr(sys.modules.get(f"{_PACKAGE}.{module}"), cls, None)
            if owner is None or not inspect.isfunction(_held(owner, name)):
                missing.append(f"{cls}.{name}")
        if missing:
            self._wrap_unknown(missing[0])
            return
        for module, cls, name, before, after in wrapped:
            owner = getattr(sys.modules[f"{_PACKAGE}.{module}"], cls)
            self._put(
                owner,
                name,
                guarded(f"continuous batching, {name}", before),
                guarded(f"continuous batching, {name}", after or _nothing),
            )

    def _wrap_unknown(self, missing: str) -> None:
        """Of another transformers nothing is guessed; whoever uses it is told so."""
        owner = getattr(sys.modules[f"{_PACKAGE}.continuous_api"], "ContinuousBatchingManager", 0)

        def say(args: tuple[Any, ...], kwargs: Any) -> None:
            model = id(getattr(args[0], "model", None))
            for listener in listeners.running():
                if listener.records(model):
                    listener.unknown(
                        "The continuous batching of this transformers is not known to pertoken "
                        f"(it has no {missing}): its requests are unknown."
                    )

        if inspect.isfunction(_held(owner, "start")):
            self._put(owner, "start", guarded("continuous batching, start", say), _nothing)

    def _put(self, owner: Any, name: str, before: Any, after: Any) -> None:
        base = inspect.getattr_static(owner, name)
        wrapper = patch.put(
            owner, name, base, lambda inner: _native.MethodCall(inner, before, after)
        )
        self._installed.append((owner, name, wrapper))

    def _manager_of(self, router: Any, model: Any = None) -> _Manager | None:
        """By its router, which the manager and its processor share."""
        manager = self._managers.get(router)
        if manager is None and model is not None:
            manager = self._managers[router] = _Manager(model)
        return manager

    def _add(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        if id(args[0].model) not in self._models:
            return None
        adding = [self._manager_of(args[0].output_router, args[0].model), None]
        return adding, self._adding.set(adding)

    def _make_state(self, args: tuple[Any, ...], kwargs: Any) -> None:
        adding = self._adding.get()
        if adding is None:
            return
        # Here and not after the call: the manager's thread may be quicker.
        adding[1] = args[0].request_id
        adding[0].engine.request_arrived(adding[1], tokens_in=len(args[0].initial_tokens))

    def _added(self, token: Any, result: Any, error: type[BaseException] | None) -> None:
        adding, reset = token
        self._adding.reset(reset)
        if error is not None and adding[1] is not None:
            adding[0].engine.request_finished(adding[1], error=error.__name__)

    def _fail(self, args: tuple[Any, ...], kwargs: Any) -> None:
        manager = self._manager_of(args[0])
        if manager is not None:
            state, error = args[1], args[2] if len(args) > 2 else (kwargs or {})["error"]
            manager.engine.request_finished(state.request_id, error=type(error).__name__)

    def _prepare(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        manager = self._manager_of(args[0].output_router)
        return None if manager is None else self._preparing.set(manager)

    def _prepared(self, token: Any, result: Any, error: Any) -> None:
        self._preparing.reset(token)

    def _cancel(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        return self._preparing.get()

    def _cancelled(self, manager: _Manager, result: Any, error: Any) -> None:
        for state in result or ():
            manager.engine.request_finished(state.request_id, error="cancelled")

    def _begin_step(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        processor, model = args[0], args[1] if len(args) > 1 else (kwargs or {})["model"]
        if id(model) not in self._models:
            return None
        manager = self._manager_of(processor.output_router, model)
        return None if manager is None else manager.begin_step(processor).__enter__()

    def _begin_warmup(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        model = args[1] if len(args) > 1 else (kwargs or {})["model"]
        if id(model) not in self._models:
            return None
        return Engine(model=model).step([]).__enter__()  # it has the rows of no request

    def _end_step(self, step: EngineStep, result: Any, error: Any) -> None:
        step.__exit__(error, None, None)

    def _begin_update(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        manager = self._manager_of(args[0].output_router)
        begun = None if manager is None else manager.begin_update(args[0])
        return None if begun is None else (manager, *begun)

    def _end_update(self, token: Any, result: Any, error: Any) -> None:
        manager, step, before = token
        if error is None:
            manager.end_update(step, before)


def _held(owner: Any, name: str) -> Any:
    return inspect.getattr_static(owner, name, None)


def _nothing(token: Any, result: Any, error: Any) -> None:
    """After a call of which only the beginning matters."""


_watch = _Watch()


def install(models: Iterable[int]) -> None:
    """Begins to tell of managers that run these models, by identity. Under the change lock."""
    _watch.install(models)


def remove(models: Iterable[int]) -> None:
    """Takes one `install` back."""
    _watch.remove(models)
