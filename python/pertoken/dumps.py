"""Dumps what a recording holds when a trigger fires, from a thread of its own.

The thread waits in the native recorder, which wakes it when something fired. What is dumped is a
snapshot: the recording goes on, and loses nothing by it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pertoken.errors import RecordingStateError, SelectionError, system_errors
from pertoken.result import Profile
from pertoken.schema import STEP_KINDS
from pertoken.triggers import NonFinite, Signal, SlowStep, StepTime, Trigger, When

if TYPE_CHECKING:
    from pertoken.recording import Recording

logger = logging.getLogger("pertoken")

_HOUR_S = 3600.0
_LONGEST_WAIT_S = 3600.0


def dump(recording: Recording, path: str | os.PathLike[str], trigger: dict[str, Any]) -> None:
    """Writes what `recording` holds, with what made it so in ``meta["trigger"]``."""
    held = recording.result()
    meta = {**held.meta, "trigger": {**trigger, "at_unix_ns": time.time_ns()}}
    Profile(held.tables, meta, held.losses, held.totals).save(path)


class Dumps:
    """The triggers of one recording, and the files that they have given.

    Args:
        triggers: what fires.
        folder: where the files go; made when it is not there.
        dumps_per_hour: how many there may be in any hour; what fires beyond is counted.

    Raises:
        SelectionError: there is something else among the triggers, or a number is out of range.
    """

    def __init__(
        self, triggers: Sequence[Trigger], folder: str | os.PathLike[str], dumps_per_hour: int
    ) -> None:
        if isinstance(triggers, Trigger):
            raise SelectionError(f"triggers: give a list of them: [{triggers!r}]")
        triggers = tuple(triggers)
        for trigger in triggers:
            if not isinstance(trigger, Trigger):
                raise SelectionError(
                    f"triggers: {trigger!r} is none; give those of pertoken.triggers"
                )
        if dumps_per_hour < 1:
            raise SelectionError(f"dumps_per_hour={dumps_per_hour}: give at least 1")
        self._triggers = triggers
        self._folder = Path(folder)
        self._most = dumps_per_hour
        self._times_s: deque[float] = deque(maxlen=dumps_per_hour)  # of the last dumps
        self._number = 0
        self._ending: list[Callable[[Recording | None], None]] = []
        self.paths: list[Path] = []
        self.suppressed = 0  # fired when the hour's dumps were used up

    def start(self, recording: Recording) -> None:
        """Arms the triggers, and starts the thread.

        Raises:
            PertokenError: the folder cannot be made.
            RecordingStateError: a signal is to be handled, and this is not the main thread.
        """
        with system_errors("dump into", str(self._folder)):
            self._folder.mkdir(parents=True, exist_ok=True)
        recorder = recording.recorder
        for number in {trigger.number for trigger in self._of(Signal)}:
            self._ending.append(_handle(number, recorder))
        watched = self._of(NonFinite)
        recorder.arm_triggers(
            fixed_ns=self._fixed_ns(),
            learned=self._learned(),
            nans=bool(watched),
            infinities=any(trigger.infinities for trigger in watched),
        )
        ending = _Ending()
        thread = threading.Thread(
            target=_wait_and_dump,
            args=(self, weakref.ref(recording), recorder, ending),
            name="pertoken-dump",
            daemon=True,
        )
        self._ending.append(partial(_end, ending, recorder))
        thread.start()

    def end(self, recording: Recording | None) -> None:
        """Disarms the triggers, and ends the thread when its last dump is done.

        Args:
            recording: what it may still have to dump; None when that is gone.
        """
        while self._ending:
            self._ending.pop()(recording)

    def _of(self, kind: type[Any]) -> list[Any]:
        return [trigger for trigger in self._triggers if isinstance(trigger, kind)]

    def _fixed_ns(self) -> list[int]:
        """By kind, the time over which a step fires; 0: never."""
        shortest = [0] * len(STEP_KINDS)
        for trigger in self._of(StepTime):
            for kind in _kinds(trigger.kind):
                over_ns = max(1, round(trigger.over_s * 1e9))
                shortest[kind] = min(shortest[kind] or over_ns, over_ns)
        return shortest

    def _learned(self) -> list[tuple[int, float, float, int]]:
        """For each kind and trigger: the kind, its quantile, the factor, and the least number."""
        return [
            (kind, trigger.quantile, trigger.factor, trigger.min_steps)
            for trigger in self._of(SlowStep)
            for kind in _kinds(trigger.kind)
        ]

    def next_wait_s(self) -> float:
        """How long the thread may sleep before a function is to be asked."""
        return min((trigger.every_s for trigger in self._of(When)), default=_LONGEST_WAIT_S)

    def ask(self, recording: Recording, asked_s: dict[int, float]) -> None:
        """Asks the functions whose time has come; `asked_s` says when each was asked last."""
        now_s = time.monotonic()
        for place, trigger in enumerate(self._of(When)):
            if now_s - asked_s.get(place, -_LONGEST_WAIT_S) < trigger.every_s:
                continue
            asked_s[place] = now_s
            try:
                answer = trigger.function(recording)
                if answer:
                    self.dump(recording, {"reason": "when", "answer": str(answer)[:1000]})
            except Exception as error:
                recording.faults.note("the function of a trigger", error)

    def take(self, recording: Recording, fired: list[dict[str, Any]]) -> None:
        """Dumps once for all that has fired; the first is the reason, the rest are counted."""
        if not fired:
            return
        first, *others = fired
        if "kind" in first:
            first["kind"] = STEP_KINDS[first["kind"]]
        self.dump(recording, {**first, "others": len(others)})

    def dump(self, recording: Recording, trigger: dict[str, Any]) -> None:
        """Dumps, unless the hour's dumps are used up."""
        now_s = time.monotonic()
        if len(self._times_s) == self._most and now_s - self._times_s[0] < _HOUR_S:
            self.suppressed += 1
            recording.log.note_unknown(
                "Triggers fired when the dumps of the hour were used up: no file tells of them."
            )
            return
        self._times_s.append(now_s)
        self._number += 1
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        name = f"{stamp}-{os.getpid()}-{self._number:03}-{trigger['reason']}.pertoken"
        try:
            dump(recording, self._folder / name, {**trigger, "suppressed": self.suppressed})
        except Exception as error:
            recording.faults.note("a dump", error)
            return
        self.paths.append(self._folder / name)
        logger.info("pertoken: dumped %s", self._folder / name)


def _kinds(kind: str | None) -> list[int]:
    return list(range(len(STEP_KINDS))) if kind is None else [STEP_KINDS.index(kind)]


class _Ending(threading.Event):
    """Set when the thread is to end; it holds what is to be dumped until then."""

    recording: Recording | None = None


def _end(ending: _Ending, recorder: Any, recording: Recording | None) -> None:
    ending.recording = recording
    ending.set()
    recorder.disarm_triggers()


def _wait_and_dump(
    dumps: Dumps, ref: weakref.ref[Recording], recorder: Any, ending: _Ending
) -> None:
    asked_s: dict[int, float] = {}
    while True:
        fired = recorder.wait_for_trigger(dumps.next_wait_s())
        has_ended = ending.is_set()
        recording = ending.recording or ref()
        if recording is None:
            return
        dumps.take(recording, fired)
        if has_ended:
            ending.recording = None
            return
        dumps.ask(recording, asked_s)
        del recording


def _handle(number: int, recorder: Any) -> Callable[[Recording | None], None]:
    """Has a signal fire, after whatever handled it before; gives what undoes that."""
    if threading.current_thread() is not threading.main_thread():
        raise RecordingStateError(
            "a trigger by a signal needs the recording to be started in the main thread"
        )
    before = signal.getsignal(number)

    def handler(received: int, frame: Any) -> None:
        recorder.fire_trigger(received)
        if callable(before):
            before(received, frame)

    signal.signal(number, handler)

    def restore(recording: Recording | None) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(number) is handler:
            signal.signal(number, signal.SIG_DFL if before is None else before)

    return restore
