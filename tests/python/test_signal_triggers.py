"""Triggers by signals: every recording's fires, and the process handles signals as before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pertoken
from odd_modules import Stack, numbers, seeded
from pertoken.errors import RecordingStateError
from pertoken.triggers import Signal
from test_triggers import dump_threads
from waiting import PATIENCE_S, wait_for

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def own() -> Iterator[list[int]]:
    """A handler of the program's own, and what it has received; it is there again at the end."""
    received: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    handler = signal.getsignal(signal.SIGUSR2)
    try:
        yield received
        wait_for(lambda: not dump_threads())
        assert signal.getsignal(signal.SIGUSR2) is handler
    finally:
        signal.signal(signal.SIGUSR2, before)


def signalled(folder: Path) -> pertoken.Recording:
    return pertoken.profile(seeded(Stack), triggers=[Signal()], dump_folder=folder)


def raise_it() -> None:
    signal.raise_signal(signal.SIGUSR2)


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    head = (
        f"import os, signal, sys, threading\nsys.path[:0] = [{HERE!r}]\nimport pertoken\n"
        "from odd_modules import Stack, numbers, seeded\n"
        "from pertoken.triggers import Signal\n"
        "recording = pertoken.profile(\n"
        "    seeded(Stack), triggers=[Signal()], dump_folder=sys.argv[1])\n"
    )
    return subprocess.run(
        [sys.executable, "-c", head + script, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("first_is_stopped_first", [True, False])
def test_two_recordings_end_in_any_order(
    tmp_path: Path, own: list[int], first_is_stopped_first: bool
) -> None:
    """Each dumps once, the program's handler is called once, and is back when both have ended."""
    recordings = [signalled(tmp_path / name) for name in "ab"]
    for recording in recordings:
        recording.start()
    raise_it()
    order = recordings if first_is_stopped_first else recordings[::-1]
    order[0].stop()
    raise_it()
    order[1].stop()
    assert [len(recording.dumps) > 0 for recording in recordings] == [True, True]
    counts = [
        sum(1 + pertoken.load(path).meta["trigger"]["others"] for path in recording.dumps)
        for recording in order
    ]
    assert counts == [1, 2], "what was stopped hears no signal any longer"
    assert own == [signal.SIGUSR2] * 2


def test_stopped_in_another_thread_the_next_signal_restores(tmp_path: Path, own: list[int]) -> None:
    recording = signalled(tmp_path)
    recording.start()
    thread = threading.Thread(target=recording.stop)
    thread.start()
    thread.join()
    raise_it()
    assert own == [signal.SIGUSR2] and recording.dumps == ()


def test_stopped_in_another_thread_the_next_start_takes_the_handler_over(
    tmp_path: Path, own: list[int]
) -> None:
    first = signalled(tmp_path / "first")
    first.start()
    thread = threading.Thread(target=first.stop)
    thread.start()
    thread.join()
    with signalled(tmp_path / "second") as second:
        raise_it()
    assert len(second.dumps) == 1 and first.dumps == () and own == [signal.SIGUSR2]


def test_a_handler_above_ours_stays_and_hands_on(tmp_path: Path, own: list[int]) -> None:
    """Also a recording that begins above it hears the signal, and nobody hears it twice."""
    below = signalled(tmp_path / "below")
    below.start()
    ours = signal.getsignal(signal.SIGUSR2)
    heard = []

    def above(number: int, frame: Any) -> None:
        heard.append(number)
        ours(number, frame)

    signal.signal(signal.SIGUSR2, above)
    with signalled(tmp_path / "on top") as on_top:
        raise_it()
    assert signal.getsignal(signal.SIGUSR2) is above
    below.stop()
    assert signal.getsignal(signal.SIGUSR2) is above, "it is not ours to take away"
    raise_it()
    assert heard == own == [signal.SIGUSR2] * 2
    assert len(below.dumps) == len(on_top.dumps) == 1
    signal.signal(signal.SIGUSR2, ours)  # as its owner does who is done with it
    raise_it()
    assert len(own) == 3


def test_stopped_in_another_thread_the_default_is_done(tmp_path: Path) -> None:
    """A process that would have ended by the signal before ends by it after, and not meanwhile."""
    run = run_script(
        "recording.start()\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "thread = threading.Thread(target=recording.stop)\n"
        "thread.start()\n"
        "thread.join()\n"
        "print(len(recording.dumps), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "print('still there')\n",
        str(tmp_path),
    )
    assert (run.returncode, run.stdout, run.stderr) == (-signal.SIGUSR2, "1\n", "")


def test_a_forked_child_handles_signals_as_before(tmp_path: Path, own: list[int]) -> None:
    with signalled(tmp_path) as recording:
        child = os.fork()
        if child == 0:
            raise_it()
            os._exit(len(own) + 10 * isinstance(signal.getsignal(signal.SIGUSR2), type(handled)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 11, "a plain function, again"
        raise_it()
    assert len(recording.dumps) == 1 and own == [signal.SIGUSR2]


def handled() -> None:
    """Of the type that the program's own handlers have here."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT])
def test_what_asks_the_process_to_end_needs_a_handler_first(
    tmp_path: Path, number: signal.Signals
) -> None:
    model = seeded(Stack)
    received = []
    before = signal.signal(number, signal.SIG_DFL)
    try:
        recording = pertoken.profile(model, triggers=[Signal(number)], dump_folder=tmp_path)
        with pytest.raises(RecordingStateError, match=f"{number.name}.*handler of your own"):
            recording.start()
        assert not recording.is_recording and signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, lambda number, frame: received.append(number))
        with recording:
            model(numbers())
            signal.raise_signal(number)
        assert len(recording.dumps) == 1 and received == [number]
    finally:
        signal.signal(number, before)
