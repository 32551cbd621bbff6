"""The files that a profiled process leaves: one for each model that it ran, written at its end."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pertoken.autostart import say
from pertoken.autostart_options import AutostartOptions
from pertoken.errors import system_errors
from pertoken.quantity import name_text, plural_text

if TYPE_CHECKING:
    from pertoken.recording import Recording

_NAMES_SHOWN = 5


class ProcessFiles:
    """Writes what was recorded in this process.

    Args:
        options: where to, and what else.
    """

    def __init__(self, options: AutostartOptions) -> None:
        self._options = options
        self._recordings: list[Recording] = []  # not written yet
        self._written = 0
        self._has_told = False  # of a model, at the end
        self._unrecorded: Counter[str] = Counter()
        atexit.register(self.write_all)
        if options.log_interval:
            _show_log()

    def add(self, recording: Recording) -> None:
        """Takes in a recording that has started."""
        self._write_in_worker()
        self._recordings.append(recording)

    @property
    def models(self) -> int:
        """How many models were recorded so far."""
        return self._written + len(self._recordings)

    @property
    def has_told(self) -> bool:
        """Whether something was said of a model: where its file is, or why there is none."""
        return self._has_told

    def note_unrecorded(self, name: str) -> None:
        """Counts a model that could not be recorded."""
        self._unrecorded[name] += 1

    def start_afresh(self) -> None:
        """In a forked child: the parent writes its own."""
        self._options = self._options.for_children()
        self._recordings = []
        self._unrecorded.clear()
        self._written = 0

    def write_ended(self) -> None:
        """Writes what was recorded of models that are gone, and lets go of it."""
        ended = [recording for recording in self._recordings if not recording.is_recording]
        self._recordings = [recording for recording in self._recordings if recording.is_recording]
        for recording in ended:
            self._write(recording)

    def write_all(self) -> None:
        """Writes everything. Called as late as the process allows, and safe to call again."""
        recordings, self._recordings = self._recordings, []
        interrupted = _ends_by_interrupt()
        for recording in recordings:
            self._write(recording)
        if interrupted and recordings:
            # Imports that compile source make the interpreter forget how it is ending, and exit
            # with 1. Source that is interrupted reminds it.
            with suppress(KeyboardInterrupt):
                exec("raise KeyboardInterrupt")
        if self._unrecorded:
            names = ", ".join(map(name_text, list(self._unrecorded)[:_NAMES_SHOWN]))
            count = sum(self._unrecorded.values())
            say(f"{plural_text(count, 'model')} could not be recorded: {names}")
            self._has_told = True
            self._unrecorded.clear()

    def _write(self, recording: Recording) -> None:
        # The program has ended well, and its exit code says so: what fails here is one line.
        try:
            recording.stop()
            profile = recording.result()
            if not len(profile.steps):
                return
            self._has_told = True
            path = self._options.file(script_name(), os.getpid(), self._written + 1)
            with system_errors("write", str(path)):
                path.parent.mkdir(parents=True, exist_ok=True)
            profile.save(path)
        except Exception as error:
            say(f"a profile is lost: {str(error) or type(error).__name__}")
            return
        self._written += 1
        counts = ", ".join(
            plural_text(len(table), noun)
            for table, noun in ((profile.requests, "request"), (profile.steps, "step"))
        )
        say(f"wrote {path} ({recording.model_facts['class']}, {counts})")
        if self._options.chrome:
            trace = path.with_suffix(".json")
            try:
                profile.export_chrome_trace(trace)
                say(f"wrote {trace}")
            except Exception as error:
                say(f"no trace of {path.name}: {str(error) or type(error).__name__}")
        if self._options.summary and sys.stderr is not None:
            try:
                print(profile.summary(), file=sys.stderr, flush=True)
            except Exception as error:
                say(f"no summary of {path.name}: {str(error) or type(error).__name__}")

    def _write_in_worker(self) -> None:
        """Processes of multiprocessing may leave by os._exit, and run only its own finalizers."""
        process = sys.modules.get("multiprocessing.process")
        if process is None or process.parent_process() is None:
            return
        from multiprocessing.util import Finalize

        Finalize(None, self.write_all, exitpriority=-1000)


def _ends_by_interrupt() -> bool:
    """Whether a KeyboardInterrupt ends this process, which will then end itself by SIGINT."""
    is_interactive = hasattr(sys, "ps1") or sys.flags.interactive
    return not is_interactive and getattr(sys, "last_type", None) is KeyboardInterrupt


def script_name() -> str:
    """The name of what runs: of a script, or of a module."""
    argument = sys.argv[0] if getattr(sys, "argv", None) else ""
    path = Path(argument)
    stem = path.parent.name if path.stem == "__main__" else path.stem
    return stem if argument not in ("", "-c", "-m", "-") and stem else "python"


class _UnlessHandled(logging.StreamHandler):  # type: ignore[type-arg]
    """Shows records of this package where the program has set up no logging."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not logging.getLogger().handlers and bool(super().filter(record))


def _show_log() -> None:
    logger = logging.getLogger("pertoken")
    handler = _UnlessHandled()
    handler.setFormatter(logging.Formatter("pertoken: %(message)s"))
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
