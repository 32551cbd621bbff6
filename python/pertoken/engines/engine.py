"""What an engine tells: arrivals, steps with their rows, tokens committed, ends."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pertoken import _native
from pertoken.engines import listeners
from pertoken.engines.arguments import (
    UNNAMED_ERROR,
    arrival_ticks,
    error_name,
    label_texts,
    prompt_tokens,
    step_counts,
)
from pertoken.engines.requests import UNFINISHED, EngineRequest
from pertoken.engines.row import RequestId, Row
from pertoken.fault_log import FaultLog
from pertoken.request_run import RequestRun, current_run

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

MAX_OPEN_REQUESTS = 1 << 16
MAX_UNTOLD_STEPS = 64
MAX_STEPS_WITH_LOGITS = 8  # of the untold ones; a step may take rows times vocabulary

_SWITCHED_OFF = os.environ.get("PERTOKEN") == "0"  # the native side reads the same when loaded


def _never_raises(method: F) -> F:
    """An engine must run on whatever is wrong here: faults are counted and logged once."""

    @functools.wraps(method)
    def guarded(self: Engine, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.note_fault(method.__name__, error)
            return None

    return guarded  # type: ignore[return-value]


@functools.cache
def _ticks_per_second() -> float:
    return float(_native.clock_info()["ticks_per_second"])


class Engine:
    """One engine that batches requests, as seen by every recording that runs.

    Its methods may be called from any thread, take well under a microsecond a row, and never
    raise: what is wrong with a call is counted in ``faults`` and in the ``losses["faults"]`` of
    the recordings that run, and logged once.

    Args:
        model: the module that the engine runs. Where no forward of it is seen in a step, as when
            a CUDA graph is replayed, the step goes to the recordings of this model; None: to all.
        max_open_requests: how many requests may be open; past it the oldest is closed with the
            error ``unfinished``, since it was probably never told that it ended.

    Attributes:
        faults: how often something was wrong, by reason.
    """

    def __init__(self, model: Any = None, *, max_open_requests: int = MAX_OPEN_REQUESTS) -> None:
        # The identity only: an adapter may outlive its model.
        self._model = 0 if model is None else id(getattr(model, "_orig_mod", model))
        self._max_open_requests = max_open_requests
        self.faults = FaultLog()
        self._begin_afresh()
        _engines.add(self)

    def _begin_afresh(self) -> None:
        """Also in a forked child: the parent's threads may have held the lock, and are not here."""
        self._requests: dict[RequestId, EngineRequest] = {}  # open ones, oldest first
        self._untold: deque[EngineStep] = deque()  # steps whose commits are still to come
        self._lock = threading.Lock()

    @property
    def is_recording(self) -> bool:
        """Whether anybody listens; an adapter need not even make rows while nobody does."""
        return _native.is_recording()

    @property
    def open_requests(self) -> list[RequestId]:
        """Ids of the requests that have not ended, oldest first."""
        with self._lock:
            return list(self._requests)

    def has_open(self, request_id: RequestId) -> bool:
        """Whether a request of this id has arrived and not ended."""
        return request_id in self._requests

    @_never_raises
    def request_arrived(
        self,
        request_id: RequestId,
        *,
        tokens_in: int = -1,
        ago_ns: int = 0,
        in_progress: bool = False,
        like: RequestId | None = None,
        model_version: str | None = None,
        labels: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens a request. The time to its first token counts from here.

        An argument that cannot be is a fault, and taken as not given. The request is opened all the
        same.

        A request that is not told is opened by its first row; unless that is the beginning of its
        prompt, the positions of its tokens stay unknown. One of the same id that is still open is
        closed with the error ``unfinished``.

        Args:
            request_id: unique among the open requests of this engine.
            tokens_in: tokens of the prompt; -1 unknown.
            ago_ns: how long ago it arrived, for an engine that tells it late; a duration, not a
                time of day.
            in_progress: whether steps that were not told may have committed tokens to it; then
                the positions of its tokens and the time to the first stay unknown.
            like: an open request whose labels and model version it shares where it has none of
                its own: that of which it is a further sequence.
            model_version: the version of the model that serves it.
            labels: further labels; each becomes a column ``label.<name>`` of ``requests``.
                Those of a ``pertoken.request`` round this call hold besides, and its model
                version where none is given.
        """
        if _SWITCHED_OFF:
            return
        here, now = "request_arrived", _native.now_ticks()
        start_ticks = self._read(here, now, arrival_ticks, ago_ns, now, _ticks_per_second)
        count = self._read(here, -1, prompt_tokens, tokens_in)
        named: dict[str, str] = self._read(here, {}, label_texts, labels)
        around: RequestRun | EngineRequest | None = current_run()
        if like is not None:
            around = self._read(here, None, self._requests.get, like)
        if around is not None:
            named = {**around.labels, **named}
            model_version = around.model_version if model_version is None else model_version
        version = "" if model_version is None else str(model_version)
        request = EngineRequest(str(request_id), start_ticks, count, version, named)
        if in_progress:
            request.whole_since_ticks = 0
        self._open(request_id, request)

    def _open(self, request_id: RequestId, request: EngineRequest) -> None:
        with self._lock:
            surplus = [self._requests.pop(request_id, None)]
            self._requests[request_id] = request
            if len(self._requests) > self._max_open_requests:
                surplus.append(self._requests.pop(next(iter(self._requests))))
        for forgotten in surplus:
            if forgotten is not None:
                self._close(forgotten, UNFINISHED)
                error = LookupError("the end of a request was not told")
                self.note_fault("request_arrived", error)
        if self._model:
            for listener in listeners.running():
                if listener.records(self._model):
                    listener.request_arrived(request)

    @_never_raises
    def request_finished(
        self,
        request_id: RequestId,
        *,
        error: str | BaseException | type[BaseException] | None = "",
    ) -> None:
        """Closes a request; one that is not open is passed over.

        Args:
            request_id: as it arrived.
            error: what ended it early: a text such as ``cancelled``, or an exception or its
                class, of which the name is kept. Empty or None when it ended as it should. Of
                anything else, a fault, only ``error`` is kept.
        """
        with self._lock:
            request = self._requests.pop(request_id, None)
        if request is not None:
            self._close(request, self._read("request_finished", UNNAMED_ERROR, error_name, error))

    def _close(self, request: EngineRequest, error: str) -> None:
        request.end(error)
        for listener in listeners.running():
            listener.request_finished(request)

    def step(self, rows: Iterable[Row]) -> EngineStep:
        """A step, as a context manager round the engine's forward.

        It lasts from the entry to the exit of the context. Its kind is the phase of its rows
        where all agree, else ``mixed``. A request has one row in a step.

        Args:
            rows: in the order of the batch. Not looked at while nothing is recorded.
        """
        if not _native.is_recording():
            return EngineStep()
        try:
            step = self._step(list(rows))
        except Exception as error:
            self.note_fault("step", error)
            return EngineStep()
        if step.awaits_commits:
            self._await_commits(step)
        return step

    def _step(self, rows: list[Row]) -> EngineStep:
        try:
            return EngineStep(rows, self._requests, self._model, self)
        except KeyError:
            return EngineStep(rows, self.requests_of(rows), self._model, self)

    def requests_of(self, rows: Iterable[Row]) -> dict[RequestId, EngineRequest]:
        """The open requests, by id, with those of the rows that have not arrived yet."""
        for row in rows:
            if row.request is not None and row.request not in self._requests:
                request = EngineRequest(str(row.request), _native.now_ticks())
                if row.phase != "prefill" or row.context_len != 0:
                    request.whole_since_ticks = 0
                self._open(row.request, request)
        return self._requests

    def _await_commits(self, step: EngineStep) -> None:
        with self._lock:
            self._untold.append(step)
            late = self._untold.popleft() if len(self._untold) > MAX_UNTOLD_STEPS else None
            if len(self._untold) > MAX_STEPS_WITH_LOGITS:
                self._untold[-1 - MAX_STEPS_WITH_LOGITS].forget_logits()
        if late is not None:
            late.commit([-1] * len(late.rows))

    def take_untold(self, step: EngineStep) -> bool:
        """Whether the commits of a step are still open; closes it and all before it.

        Tokens are counted in the order of the steps, so what was not told of an earlier one
        stays unknown.
        """
        with self._lock:
            if step not in self._untold:
                return False
            earlier = []
            while (first := self._untold.popleft()) is not step:
                earlier.append(first)
        for unknown in earlier:
            unknown.commit([-1] * len(unknown.rows))
        return True

    def _read(self, where: str, otherwise: T, check: Callable[..., T], *given: Any) -> T:
        """What a part of a call says; if that cannot be, a fault is noted and the rest holds."""
        try:
            return check(*given)
        except Exception as error:
            self.note_fault(where, error)
            return otherwise

    def note_fault(self, where: str, error: Exception) -> None:
        """Counts what went wrong, here and in every recording that runs; one of them logs it."""
        heard = listeners.running()
        self.faults.note(where, error, is_logged=not heard)
        for listener in heard:
            listener.fault(f"engine, {where}", error)


class EngineStep(_native.StepRegion):
    """One step of an engine; made by `Engine.step`."""

    def __init__(
        self,
        rows: list[Row] | None = None,
        requests: dict[RequestId, EngineRequest] | None = None,
        model: int = 0,
        engine: Engine | None = None,
    ) -> None:
        self.rows = rows or []
        self.awaits_commits = -1 in step_counts(row.committed for row in self.rows)
        self._engine = engine  # None: nobody listens
        if engine is not None:
            super().__init__(0, -1, -1, self.rows, requests or {}, model, self.awaits_commits)

    def __enter__(self) -> EngineStep:
        """Begins the step."""
        if self._engine is not None:
            super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        """Ends the step; one that raised has committed nothing."""
        if self._engine is not None:
            super().__exit__(exc_type, exc, traceback)
            if exc_type is not None:
                self._engine.take_untold(self)

    def committed(
        self, tokens: Mapping[Any, int], chosen: Mapping[Any, Sequence[int]] | None = None
    ) -> None:
        """Tells what the step committed, inside its context or afterwards; once, and never raises.

        Engines that overlap their steps tell them in the order in which they ran. What is not
        told before a later step is, or before 64 further ones have begun, stays unknown; so does
        all of a step of which what is told cannot be. Does nothing where the rows have said it all.

        Args:
            tokens: how many, by id of the request; rows of other requests committed what the row
                itself says, else nothing. In one step there cannot be over 2**24.
            chosen: the ids of these tokens, by id of the request. Where the recording reads logits
                (``keeps_logits()`` says so) it takes their log-probabilities, and keeps no ids. Up
                to 8 steps whose tokens are still to be told have their logits kept.
        """
        engine = self._engine
        if engine is None or not self.awaits_commits:
            return
        is_open = False
        try:
            is_open = engine.take_untold(self)
            if not is_open:
                raise LookupError("the tokens of this step were told already, or too late")
            counts = step_counts(
                tokens.get(row[0], max(row.committed or 0, 0)) for row in self.rows
            )
            if chosen is None:
                self.commit(counts)
            else:
                self.commit(counts, [chosen.get(row[0], ()) for row in self.rows])
        except Exception as error:
            engine.note_fault("committed", error)
            if is_open:  # and the positions of the tokens after it are unknown
                self.commit([-1] * len(self.rows))


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _begin_afresh_in_child() -> None:
    for engine in list(_engines):
        engine._begin_afresh()


os.register_at_fork(after_in_child=_begin_afresh_in_child)

manual = Engine()
"""The engine of ``pertoken.step(rows=[...])``: its requests arrive and finish here."""
