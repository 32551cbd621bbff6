"""The thread that dumps for a recording while it runs, and who waits for its last dump.

A daemon thread, so that one that hangs does not keep the process; what has fired is waited for at
the end of the process, within a bound.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pertoken.dumps import Dumps
    from pertoken.recording import Recording

_PATIENCE_S = 10.0  # for all that is waited for at once
_LONGEST_WAIT_S = 3600.0

_running: set[DumpThread] = set()  # armed, or at their last dump
os.register_at_fork(after_in_child=_running.clear)  # a forked child has none of these threads
_ends_in_process = 0  # the process whose end waits


class DumpThread:
    """Waits in the native recorder, which wakes it when something fired, and has it dumped.

    Args:
        dumps: what it works for.
        recording: what is recorded; held weakly until the end.
        armed: which arming of the native triggers it waits for.
    """

    def __init__(self, dumps: Dumps, recording: Recording, armed: int) -> None:
        self._dumps = dumps
        self._recorder = recording.recorder
        self._armed = armed
        self._ref = weakref.ref(recording)
        self._held: Recording | None = None  # from the end until the last dump
        # A plain flag: the collector may end a recording in the middle of this thread's own code.
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="pertoken-dump", daemon=True)

    def start(self) -> None:
        """Starts the thread, whose last dump the end of the process waits for."""
        _finish_with_process()
        _running.add(self)
        try:
            self._thread.start()
        except BaseException:
            _running.discard(self)
            raise

    def end(self, recording: Recording | None) -> None:
        """Disarms the triggers; the thread ends when what has fired is dumped. Waits for nothing.

        Args:
            recording: what it may still have to dump; None when that is gone.
        """
        self._held = recording
        self._recorder.disarm_triggers()
        self._has_ended = True  # only now: whoever sees it finds all that has fired

    def wait(self, until_s: float) -> None:
        """Waits for its end, until a time of the monotonic clock; never for itself."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, until_s - time.monotonic()))

    def works_for(self, dumps: Dumps) -> bool:
        """Whether it dumps for these triggers."""
        return self._dumps is dumps

    def end_with_process(self) -> None:
        """Ends it, as the stop of its recording does, which nobody has stopped."""
        self._dumps.end(self._ref())

    def _run(self) -> None:
        asked_s: dict[int, float] = {}  # when each function was asked last
        try:
            while not self._has_ended:
                fired = self._fired(min(self._dumps.next_wait_s(), _LONGEST_WAIT_S))
                recording = self._held or self._ref()
                if recording is None:
                    return
                self._dumps.take(recording, fired)
                if not self._has_ended:
                    self._dumps.ask(recording, asked_s)
                del recording
            recording = self._held or self._ref()
            if recording is not None:
                self._dumps.take(recording, self._fired(0.0))
        finally:
            self._held = None
            _running.discard(self)

    def _fired(self, timeout_s: float) -> dict[str, Any] | None:
        fired: dict[str, Any] | None = self._recorder.wait_for_trigger(timeout_s, self._armed)
        return fired


def wait_for_dumps(dumps: Dumps) -> None:
    """Waits until the threads that dump for these triggers have ended, at most ten seconds."""
    until_s = time.monotonic() + _PATIENCE_S
    for thread in list(_running):
        if thread.works_for(dumps):
            thread.wait(until_s)


def _finish_with_process() -> None:
    """Has the end of this process wait for dumps, whichever way it ends.

    Registered late: what ends recordings that nobody has stopped is registered by then, and so runs
    after it.
    """
    global _ends_in_process
    if _ends_in_process == os.getpid():
        return
    if not _ends_in_process:  # a forked child inherits it
        atexit.register(_finish)
    _ends_in_process = os.getpid()
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        # A worker may leave by os._exit, and run only these finalizers.
        Finalize(None, _finish, exitpriority=-1000)


def _finish() -> None:
    until_s = time.monotonic() + _PATIENCE_S
    running = list(_running)
    for thread in running:
        thread.end_with_process()
    for thread in running:
        thread.wait(until_s)
