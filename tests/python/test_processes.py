"""A forked child records nothing and disturbs nothing; a process may end while it records."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import invariants
import models
import pertoken
from odd_modules import NoTensors, Stack, numbers, seeded
from residue import assert_untouched, foreign_values
from waiting import PATIENCE_S

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def exit_code(pid: int) -> int:
    """Of a child that is killed if it hangs, with a code that no child returns."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the forked child hangs")


def in_child(work: Callable[[], Any]) -> int:
    """Runs `work` in a forked child: 0 when nothing in it failed."""
    pid = os.fork()
    if pid:
        return exit_code(pid)
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def test_a_forked_child_records_nothing_and_the_parent_goes_on() -> None:
    model, control = models.llama.__wrapped__(), models.llama.__wrapped__()
    expected = control.generate(models.prompt(), max_new_tokens=3)
    recording = pertoken.profile(model, modules="all")

    def child() -> None:
        assert not recording.is_recording
        assert torch.equal(model.generate(models.prompt(), max_new_tokens=3), expected)
        profile = recording.result()
        invariants.check(profile)
        assert (len(profile.steps), len(profile.requests)) == (3, 1)
        assert recording.totals().steps["decode"].begun == 2
        recording.stop()
        assert foreign_values(model) == []
        recording.start()
        assert foreign_values(model) == []
        recording.stop()

    with recording:
        model.generate(models.prompt(), max_new_tokens=3)
        assert in_child(child) == 0
        model.generate(models.prompt(), max_new_tokens=3)
    profile = recording.result()
    invariants.check(profile)
    assert (len(profile.steps), len(profile.requests)) == (6, 2)
    assert_untouched(model, control)


def test_a_forked_child_may_record_by_itself() -> None:
    model = seeded(Stack)
    recordings = [pertoken.profile(model) for _ in range(8)]  # as many as can run

    def child() -> None:
        recordings.clear()  # takes their wrappers out; they would only call through
        with pertoken.profile(model, modules="all") as own:
            model(numbers())
        with own, pertoken.span("of the child"):
            threads = [threading.Thread(target=pertoken.Recording.stop, args=(own,))]
            threads.insert(0, threading.Thread(target=model, args=(numbers(),)))
            for thread in threads:
                thread.start()
                thread.join(PATIENCE_S / 2)
            assert not any(thread.is_alive() for thread in threads)
        profile = own.result()
        invariants.check(profile)
        assert len(profile.steps) == 2
        assert profile.meta["pid"] == os.getpid()
        assert foreign_values(model) == []

    list(map(pertoken.Recording.start, recordings))
    model(numbers())
    assert in_child(child) == 0
    for recording in recordings:
        recording.stop()
        assert len(recording.result().steps) == 1


def test_forks_in_the_middle_of_calls_spans_and_requests() -> None:
    class Forking(Stack):
        def forward(self, x: Any) -> Any:
            x = super().forward(x)
            codes.append(in_child(lambda: None))
            return x

    codes: list[int] = []
    model = seeded(Forking)

    def child() -> None:
        with pertoken.span("inner"):
            model.head(numbers())

    with pertoken.profile(model, modules="all") as recording:
        with pertoken.request(id="forking"), pertoken.span("outer"):
            model(numbers())
            codes.append(in_child(child))
        model(numbers())
    profile = recording.result()
    invariants.check(profile)
    assert codes == [0, 0, 0]
    assert len(profile.steps) == 2
    assert "inner" not in profile.spans["site"].tolist()


def test_forks_while_other_threads_record_start_stop_and_read() -> None:
    model = NoTensors()  # torch's own locks are not held over a fork
    recordings = [pertoken.profile(model, modules="all") for _ in range(2)]
    ids = models.prompt()
    done = threading.Event()
    errors: list[BaseException] = []

    def repeat(work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            try:
                while not done.wait(0.003):  # all that is recorded is checked in the end
                    work()
            except BaseException as error:
                errors.append(error)

        return run

    def switch() -> None:
        recordings[1].start()
        recordings[1].stop()

    def child() -> None:
        model(ids)
        for recording in recordings:
            recording.result()
            recording.stop()
        assert foreign_values(model) == []
        with pertoken.profile(model) as own:
            model(ids)
        assert len(own.result().steps) == 1

    works = [lambda: model(ids), lambda: model(ids), switch, recordings[0].result]
    threads = [threading.Thread(target=repeat(work)) for work in works]
    for work in (*works, child):
        work()  # a module that is being imported cannot be used in a child, whoever imports it
    with recordings[0]:
        for thread in threads:
            thread.start()
        try:
            assert [in_child(child) for _ in range(15)] == [0] * 15
        finally:
            done.set()
            for thread in threads:
                thread.join()
    assert errors == []
    assert foreign_values(model) == []
    invariants.check(recordings[0].result())


def work_of_a_process(model: Any, recording: Any) -> None:
    model(numbers())
    assert len(recording.result().steps) == 1


def test_multiprocessing_with_fork() -> None:
    model = seeded(Stack)
    with pertoken.profile(model) as recording:
        model(numbers())
        context = multiprocessing.get_context("fork")
        processes = [
            context.Process(target=work_of_a_process, args=(model, recording)) for _ in range(3)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE_S)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(recording.result().steps) == 1


ENDINGS = {
    "at the end of the script": "",
    "by sys.exit": "sys.exit(0)",
    "by an exception": "raise KeyboardInterrupt",
    "by os._exit": "os._exit(0)",
    "inside a forward": "model.head.register_forward_hook(lambda *a: sys.exit(0)); model(x)",
    "inside a span and a request": """
        region, request = pertoken.span("left open"), pertoken.request(id=1)
        region.__enter__(); request.__enter__(); model(x); sys.exit(0)
    """,
    "with daemon threads at work": """
        model = NoTensors()
        recording = pertoken.profile(model, modules="all")
        recording.start()
        def work():
            while True:
                with pertoken.request(id=1), pertoken.span("daemon"):
                    model(x, past_key_values=model)
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.05)
    """,
    "with daemon threads that start and stop": """
        model = NoTensors()
        def work():
            while True:
                with pertoken.profile(model) as own:
                    model(x)
                own.totals()
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.05)
    """,
    "with a thread that still runs": """
        def work():
            time.sleep(0.1)
            model(x)
        threading.Thread(target=work).start()
    """,
    "in a forked child and then itself": """
        pid = os.fork()
        model(x)
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
        sys.exit(0)
    """,
    "by a handler at exit that uses it": """
        import atexit
        atexit.register(lambda: print("steps", len(recording.result().steps)))
        recording.stop()
    """,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends_while_it_records(ending: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    body = textwrap.dedent(ENDINGS[ending])
    script.write_text(
        "import os, sys, threading, time\n"
        f"sys.path[:0] = {[str(Path(__file__).parent)]!r}\n"
        "import torch, pertoken\n"
        "from odd_modules import NoTensors, Stack, numbers, seeded\n"
        "torch.set_num_threads(1)\n"
        "model, x = seeded(Stack), numbers()\n"
        'recording = pertoken.profile(model, modules="all")\n'
        "recording.start()\n"
        "model(x)\n"
        'print("recorded", flush=True)\n' + body
    )
    run = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", str(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if ending == "by an exception":
        assert run.returncode == -signal.SIGINT
        assert run.stderr.rstrip().endswith("KeyboardInterrupt")
    else:
        assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("recorded\n")
