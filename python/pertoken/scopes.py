"""What a user opens by hand round running code: a request, a step, a region.

Each is seen by every recording that is active in the process, and only by the code that runs
inside it: threads and asyncio tasks do not see each other's.
"""

from __future__ import annotations

import functools
import inspect
import operator
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from pertoken import _native
from pertoken.engines.arguments import MAX_STEP_TOKENS, step_counts
from pertoken.engines.engine import manual
from pertoken.engines.row import Row
from pertoken.errors import SelectionError
from pertoken.request_run import RequestRun, current_run, run_var
from pertoken.schema import STEP_KINDS

F = TypeVar("F", bound=Callable[..., Any])

_SWITCHED_OFF = os.environ.get("PERTOKEN") == "0"  # the native side reads the same when loaded


class request(_native.RequestRegion):
    """Attributes what runs inside to one request.

    Args:
        id: the caller's own id of the request, shown in the tables and traces.
        model_version: the version of the model that serves it.
        **labels: further labels; each becomes a column ``label.<name>`` of ``requests``.

    A ``generate()`` inside belongs to this request instead of opening one of its own. The time to
    first token counts from the entry of this context.
    """

    def __init__(
        self, id: str | int | None = None, model_version: str | None = None, **labels: Any
    ) -> None:
        super().__init__()
        self.id = "" if id is None else str(id)
        self.model_version = "" if model_version is None else str(model_version)
        self.labels = {name: str(value) for name, value in labels.items()}

    def __enter__(self) -> request:
        """Opens the request; each entry of one object is a request of its own."""
        if _SWITCHED_OFF:
            return self
        run_var.set(RequestRun(self, current_run(), _native.now_ticks()))
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        """Closes the request; an exception is noted by its type and passes on."""
        if _SWITCHED_OFF:
            return
        super().__exit__(exc_type, exc, traceback)
        run, inside = current_run(), None
        while run is not None and run.request is not self:
            run, inside = run.outer, run
        if run is None or run.end_ticks:  # it was entered in another context
            return
        run.error = "" if exc_type is None else exc_type.__name__
        run.end_ticks = _native.now_ticks()
        if inside is not None:  # requests that overlap for ever would hold all before them
            inside.outer = run.outer
        run_var.set(current_run())


class step(_native.StepRegion):
    """Declares what runs inside to be one step, for loops that cannot be known from outside.

    Args:
        kind: ``prefill``, ``decode``, ``verify``, ``draft``, ``mixed`` or ``other``; None: that of
            the rows, else ``other``.
        rows: how many rows the batch has; or what each of them does, as
            `pertoken.engines.Row` values; None: those of the forward inside, where there is just
            one. The kind is then the phase of the rows where all agree, else ``mixed``. Their
            requests are those of `pertoken.engines.manual`, which tells when they arrive and
            finish.
        tokens_committed: tokens that the step commits, over all rows; None when unknown, or when
            the rows say it.

    Calls of a recorded model inside are spans of this step, not steps of their own, and the step
    lasts from the entry to the exit of the context. In a recording whose model does not run
    inside, nothing is noted, unless no recorded model runs inside at all.

    Raises:
        SelectionError: the kind is not one of the above, or not that of the rows, a number is
            negative or over 2**24, or a row is not a `Row`.
    """

    def __init__(
        self,
        kind: str | None = None,
        rows: int | Sequence[Row] | None = None,
        tokens_committed: int | None = None,
    ) -> None:
        if isinstance(rows, Sequence):
            _check_rows(kind, rows, tokens_committed)
            if _SWITCHED_OFF:
                super().__init__(0, -1, -1)
                return
            try:
                super().__init__(0, -1, -1, rows, manual.requests_of(rows))
            except ValueError as error:
                raise SelectionError(str(error)) from None
            return
        kind = "other" if kind is None else kind
        if kind not in STEP_KINDS:
            raise SelectionError(f"kind={kind!r}: a step is one of {', '.join(STEP_KINDS)}")
        super().__init__(
            STEP_KINDS.index(kind),
            _count("rows", rows),
            _count("tokens_committed", tokens_committed),
        )


def _count(name: str, value: int | None) -> int:
    if value is None:
        return -1
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if not 0 <= count <= MAX_STEP_TOKENS:  # each row feeds a token at least
        raise SelectionError(
            f"{name}={value!r}: give a count up to {MAX_STEP_TOKENS}, or None when it is unknown"
        )
    return count


def _check_rows(kind: str | None, rows: Sequence[Row], tokens_committed: int | None) -> None:
    if tokens_committed is not None:
        raise SelectionError("tokens_committed with rows: say it in each Row")
    if not all(isinstance(row, Row) for row in rows):
        raise SelectionError("rows: give a count, or a sequence of pertoken.engines.Row")
    try:
        step_counts(row.committed for row in rows)
    except (TypeError, ValueError) as error:
        raise SelectionError(f"committed: {error}") from None
    phases = {row.phase for row in rows}
    of_rows = "other" if not phases else phases.pop() if len(phases) == 1 else "mixed"
    if kind is not None and kind != of_rows:
        raise SelectionError(f"kind={kind!r}: these rows make a step of kind {of_rows!r}")


class span(_native.Region):
    """A region of the user's own, as a context manager or as a decorator.

    Args:
        name: what the region is called in tables and traces.

    As a decorator it times each call of a function, and each run of a coroutine function. Of a
    generator function, each stretch that the generator runs between two values is a region, so
    that what its caller does meanwhile is in none of them.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __call__(self, function: F) -> F:
        """Wraps a function so that every call of it is a region."""
        return _wrapped(self, function, by_stretch=True)


def entered_round(context: AbstractContextManager[Any], function: F) -> F:
    """Wraps a function so that each call of it runs inside `context`.

    Of a coroutine function that is each run, and of a generator function all from the first value
    that is asked for to the generator's end, or its close: also what its caller does meanwhile.
    The context is entered anew each time, and by several threads or tasks at once.
    """
    return _wrapped(context, function, by_stretch=False)


def _wrapped(context: AbstractContextManager[Any], function: F, *, by_stretch: bool) -> F:
    """Wraps a function, or any other callable, in a context.

    Args:
        context: entered round each call of what is no generator.
        function: what is wrapped.
        by_stretch: whether, of a generator, it is entered round each stretch between two values,
            and not round the whole.
    """
    nothing: AbstractContextManager[Any] = nullcontext()
    whole, stretch = (nothing, context) if by_stretch else (context, nothing)

    if _is_a(inspect.isasyncgenfunction, function):

        @functools.wraps(function)
        async def run_async_generator(*args: Any, **kwargs: Any) -> Any:
            with whole:
                generator = function(*args, **kwargs)
                resume, given, values = generator.asend, None, []
                while True:
                    with stretch:
                        try:
                            values.append(await resume(given))
                        except StopAsyncIteration:
                            return
                        finally:
                            given = None
                    try:
                        given = yield values.pop()  # which is not kept
                        resume = generator.asend
                    except GeneratorExit:
                        with stretch:
                            await generator.aclose()
                        raise
                    except BaseException as error:
                        resume, given = generator.athrow, error

        return run_async_generator  # type: ignore[return-value]

    if _is_a(inspect.isgeneratorfunction, function):

        @functools.wraps(function)
        def run_generator(*args: Any, **kwargs: Any) -> Any:
            with whole:
                generator = function(*args, **kwargs)
                resume, given, values = generator.send, None, []
                while True:
                    with stretch:
                        try:
                            values.append(resume(given))
                        except StopIteration as end:
                            return end.value
                        finally:
                            given = None
                    try:
                        given = yield values.pop()  # which is not kept
                        resume = generator.send
                    except GeneratorExit:
                        with stretch:
                            generator.close()
                        raise
                    except BaseException as error:
                        resume, given = generator.throw, error

        return run_generator  # type: ignore[return-value]

    if _is_a(inspect.iscoroutinefunction, function):

        @functools.wraps(function)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            with context:
                return await function(*args, **kwargs)

        return run_async  # type: ignore[return-value]

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with context:
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def _is_a(kind: Callable[[Any], bool], function: Any) -> bool:
    """Whether a call makes what a function of that kind does; an object may have such a call."""
    while isinstance(function, functools.partial):
        function = function.func
    return kind(function) or kind(inspect.getattr_static(type(function), "__call__", None))
