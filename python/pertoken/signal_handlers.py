"""Handlers of signals that fire triggers: one handler for all recordings that want a signal.

A handler hands the signal on to what it found. Somebody else may put one of theirs above it, and
hand signals on to ours or not; then ours stays where it is, and a new one goes on top.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pertoken.errors import RecordingStateError

# Whoever sends one of these wants the process to end, which it would not do with a handler of ours.
_ASK_TO_END = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGQUIT})


def fire_at(number: int, recorder: Any) -> Callable[[], None]:
    """Has a signal fire the triggers of a native recorder, before whatever handled it so far.

    Args:
        number: of the signal.
        recorder: the native recorder.

    Returns:
        What undoes that, in any thread; the second call is nothing.

    Raises:
        RecordingStateError: this is not the main thread, or the signal would no longer end the
            process.
    """
    if not _is_in_main_thread():
        raise RecordingStateError(
            "a trigger by a signal needs the recording to be started in the main thread"
        )
    found = signal.getsignal(number)
    if found is signal.SIG_DFL and number in _ASK_TO_END:
        name = signal.Signals(number).name
        raise RecordingStateError(
            f"with a trigger by {name}, {name} would no longer end this process: install a handler "
            f"of your own first, with signal.signal(signal.{name}, ...)"
        )
    handler = found if isinstance(found, _Handler) else _Handler(found)
    wish = (os.getpid(), recorder)
    handler.wishes.append(wish)
    if handler is not found:
        signal.signal(number, handler)

    def release() -> None:
        with suppress(ValueError):
            handler.wishes.remove(wish)
        if not handler.recorders() and _is_in_main_thread():
            handler.step_aside(number)

    return release


class _Handler:
    """Fires the triggers of the recordings that want a signal, and hands it on.

    Args:
        before: what handled the signal before; None where that is not of Python.
    """

    def __init__(self, before: Any) -> None:
        self._before = before
        self.wishes: list[tuple[int, Any]] = []  # process and native recorder

    def recorders(self) -> list[Any]:
        """Those of this process: a forked child has the handler, but records nothing of it."""
        return [recorder for pid, recorder in tuple(self.wishes) if pid == os.getpid()]

    def __call__(self, number: int, frame: Any) -> None:
        recorders = self.recorders()
        for recorder in recorders:
            recorder.fire_trigger(number)
        # A recording that was stopped in another thread could not restore what was before.
        steps_aside = not recorders and _is_in_main_thread() and self.step_aside(number)
        if callable(self._before):
            self._before(number, frame)
        elif steps_aside and self._before is not signal.SIG_IGN:
            signal.raise_signal(number)  # does now what it does by default

    def step_aside(self, number: int) -> bool:
        """Restores what was before, in the main thread; False where another handler is on top."""
        on_top: object = signal.getsignal(number)
        if on_top is not self:
            return False
        signal.signal(number, signal.SIG_DFL if self._before is None else self._before)
        return True


def _is_in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
