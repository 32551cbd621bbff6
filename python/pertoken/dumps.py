"""Dumps what a recording holds when a trigger fires, from a thread of its own.

What is dumped is a snapshot: the recording goes on, and loses nothing by it.
"""

from __future__ import annotations

import itertools
import logging
import math
import numbers
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pertoken.dump_thread import DumpThread, wait_for_dumps
from pertoken.errors import SelectionError, system_errors
from pertoken.folder_argument import folder_name
from pertoken.number_argument import is_number
from pertoken.result import Profile
from pertoken.schema import STEP_KINDS
from pertoken.signal_handlers import fire_at
from pertoken.triggers import NonFinite, Signal, SlowStep, StepTime, Trigger, When

if TYPE_CHECKING:
    from pertoken.recording import Recording

logger = logging.getLogger("pertoken")

_HOUR_S = 3600.0
_MOST_AN_HOUR = 1_000_000

_numbers = itertools.count(1)  # of the dumps of this process, whichever recording's they are


def dump(recording: Recording, path: str | os.PathLike[str], trigger: dict[str, Any]) -> None:
    """Writes what `recording` holds, with what made it so in ``meta["trigger"]``."""
    held = recording.result()
    trigger = {**trigger, "at_unix_ns": time.time_ns()}
    if "wall_ns" in trigger:
        # It fired by an earlier estimate of the clock's rate than the table is written by.
        found = held.steps.where(held.steps["step"] == trigger["step"])
        trigger["wall_ns"] = next(iter(found["wall_ns"].tolist()), trigger["wall_ns"])
    Profile(held.tables, {**held.meta, "trigger": trigger}, held.losses, held.totals).save(path)


def dumps_by(
    triggers: Sequence[Trigger] | None, folder: str | os.PathLike[str], dumps_per_hour: int
) -> Dumps | None:
    """What `profile` is given of triggers and dumps, checked; None where nothing is to fire.

    Args:
        triggers: what fires.
        folder: where the files go.
        dumps_per_hour: how many there may be in any hour.

    Raises:
        SelectionError: one of them is not of its form, or out of its range.
    """
    dumps = Dumps(() if triggers is None else triggers, folder, dumps_per_hour)
    return dumps if dumps.triggers else None


class Dumps:
    """The triggers of one recording, and the files that they have given.

    Args:
        triggers: what fires.
        folder: where the files go; made when it is not there.
        dumps_per_hour: how many there may be in any hour; what fires beyond is counted.

    Raises:
        SelectionError: there is something else among the triggers, `folder` is no path, or
            `dumps_per_hour` no integer in its range.
    """

    def __init__(
        self, triggers: Sequence[Trigger], folder: str | os.PathLike[str], dumps_per_hour: int
    ) -> None:
        if isinstance(triggers, Trigger):
            raise SelectionError(f"triggers: give a list of them: [{triggers!r}]")
        try:
            self.triggers = tuple(triggers)
        except TypeError:
            raise SelectionError(
                f"triggers={triggers!r}: give a list of those of pertoken.triggers"
            ) from None
        for trigger in self.triggers:
            if not isinstance(trigger, Trigger):
                raise SelectionError(
                    f"triggers: {trigger!r} is none; give those of pertoken.triggers"
                )
        is_integer = is_number(dumps_per_hour, numbers.Integral)
        if not is_integer or not 1 <= dumps_per_hour <= _MOST_AN_HOUR:
            raise SelectionError(
                f"dumps_per_hour={dumps_per_hour!r}: give an integer from 1 to {_MOST_AN_HOUR:,}"
            )
        self._folder = Path(folder_name("dump_folder", folder))
        self._most = int(dumps_per_hour)
        self._times_s: deque[float] = deque(maxlen=self._most)  # of the last dumps
        self._signals: list[Callable[[], None]] = []  # what lets go of each
        self._thread: DumpThread | None = None  # while the triggers are armed
        self._has_warned = False
        self.paths: list[Path] = []
        self.suppressed = 0  # fired when the hour's dumps were used up

    def start(self, recording: Recording) -> None:
        """Arms the triggers, and starts the thread.

        Raises:
            PertokenError: the folder cannot be made.
            RecordingStateError: a signal is to be handled, and this is not the main thread, or it
                would no longer end the process.
        """
        with system_errors("dump into", str(self._folder)):
            self._folder.mkdir(parents=True, exist_ok=True)
        recorder = recording.recorder
        for number in {trigger.number for trigger in self._of(Signal)}:
            self._signals.append(fire_at(number, recorder))
        watched = self._of(NonFinite)
        if watched and not recording.observing.has_sites:
            self._warn_that_nothing_is_observed()
        armed = recorder.arm_triggers(
            fixed_ns=self._fixed_ns(),
            learned=self._learned(),
            nans=bool(watched),
            infinities=any(trigger.infinities for trigger in watched),
        )
        self._thread = DumpThread(self, recording, armed)
        self._thread.start()

    def end(self, recording: Recording | None) -> None:
        """Disarms the triggers; the thread ends behind when its last dump is done.

        Args:
            recording: what it may still have to dump; None when that is gone.
        """
        thread, self._thread = self._thread, None
        released, self._signals = self._signals, []
        for release in released:
            release()
        if thread is not None:
            thread.end(recording)

    def written(self) -> tuple[Path, ...]:
        """The files so far; when the triggers are not armed, all of them, as far as ten seconds do.

        Not for the garbage collector, since it may wait.
        """
        if self._thread is None:
            wait_for_dumps(self)
        return tuple(self.paths)

    def _of(self, kind: type[Any]) -> list[Any]:
        return [trigger for trigger in self.triggers if isinstance(trigger, kind)]

    def _warn_that_nothing_is_observed(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "pertoken: NonFinite() sees only what pertoken.observe is given, since no outputs "
                "of modules are observed; pass activations= to profile() to have them observed"
            )

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
        return min((trigger.every_s for trigger in self._of(When)), default=math.inf)

    def ask(self, recording: Recording, asked_s: dict[int, float]) -> None:
        """Asks the functions whose time has come; `asked_s` says when each was asked last."""
        now_s = time.monotonic()
        for place, trigger in enumerate(self._of(When)):
            if now_s - asked_s.get(place, -math.inf) < trigger.every_s:
                continue
            asked_s[place] = now_s
            try:
                answer = trigger.function(recording)
                if answer:
                    self.dump(recording, {"reason": "when", "answer": str(answer)[:1000]})
            except Exception as error:
                recording.faults.note("the function of a trigger", error)

    def take(self, recording: Recording, fired: dict[str, Any] | None) -> None:
        """Dumps once for all that has fired; the first is the reason, the rest are counted."""
        if fired is None:
            return
        if "kind" in fired:
            fired["kind"] = STEP_KINDS[fired["kind"]]
        self.dump(recording, fired)

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
        try:
            path = self._dump_to_new_file(recording, {**trigger, "suppressed": self.suppressed})
        except Exception as error:
            recording.faults.note("a dump", error)
            return
        self.paths.append(path)
        logger.info("pertoken: dumped %s", path)

    def _dump_to_new_file(self, recording: Recording, trigger: dict[str, Any]) -> Path:
        """Dumps to a name that no file has, also where other containers share folder and pid."""
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        while True:
            name = f"{stamp}-{os.getpid()}-{next(_numbers):03}-{trigger['reason']}.pertoken"
            path = self._folder / name
            # Nobody else takes the name meanwhile. The file itself appears when it is whole.
            taken = self._folder / f".{name}.taken"
            with system_errors("write", str(path)):
                try:
                    os.close(os.open(taken, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
                except FileExistsError:
                    continue
            try:
                if not os.path.lexists(path):
                    dump(recording, path, trigger)
                    return path
            finally:
                with suppress(OSError):
                    os.unlink(taken)


def _kinds(kind: str | None) -> list[int]:
    return list(range(len(STEP_KINDS))) if kind is None else [STEP_KINDS.index(kind)]
