"""What a user opens by hand round running code: a request, a step, a region.

Each is seen by every recording that is active in the process, and only by the code that runs
inside it: threads and asyncio tasks do not see each other's.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from pertoken import _native
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
            negative, or a row is not a `Row`.
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
        for name, value in (("rows", rows), ("tokens_committed", tokens_committed)):
            if value is not None and not 0 <= value < 2**32 - 1:
                raise SelectionError(f"{name}={value}: give a count, or None when it is unknown")
        super().__init__(
            STEP_KINDS.index(kind),
            -1 if rows is None else rows,
            -1 if tokens_committed is None else tokens_committed,
        )


def _check_rows(kind: str | None, rows: Sequence[Row], tokens_committed: int | None) -> None:
    if tokens_committed is not None:
        raise SelectionError("tokens_committed with rows: say it in each Row")
    if not all(isinstance(row, Row) for row in rows):
        raise SelectionError("rows: give a count, or a sequence of pertoken.engines.Row")
    phases = {row.phase for row in rows}
    of_rows = "other" if not phases else phases.pop() if len(phases) == 1 else "mixed"
    if kind is not None and kind != of_rows:
        raise SelectionError(f"kind={kind!r}: these rows make a step of kind {of_rows!r}")


class span(_native.Region):
    """A region of the user's own, as a context manager or as a decorator.

    Args:
        name: what the region is called in tables and traces.

    As a decorator it times each call of a function, and each run of a coroutine function.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __call__(self, function: F) -> F:
        """Wraps a function so that every call of it is a region."""
        return entered_round(self, function)


def entered_round(context: AbstractContextManager[Any], function: F) -> F:
    """Wraps a function, or a coroutine function, so that each call of it runs inside `context`.

    The context is entered anew each time, and by several threads or tasks at once.
    """
    if inspect.iscoroutinefunction(function):

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
