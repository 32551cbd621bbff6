"""Dumps that are still to be written when a recording or a process ends, and the names they get."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import invariants
import pertoken
import pertoken.dump_thread
import pertoken.dumps
from odd_modules import NoTensors, Stack, numbers, seeded
from pertoken.triggers import Signal, StepTime, When
from test_keep import Waits
from waiting import PATIENCE_S, wait_for

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

HERE = str(Path(__file__).parent)
ANY_STEP = StepTime(over_s=1e-9)


def run_script(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    head = (
        f"import sys, time\nsys.path[:0] = [{HERE!r}]\nimport pertoken\n"
        "from odd_modules import Stack, numbers, seeded\n"
        "from pertoken.triggers import StepTime, When\n"
        "model, folder = seeded(Stack), sys.argv[1]\n"
    )
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(body), str(folder)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def dumped(folder: Path) -> list[pertoken.Profile]:
    """What the files of a folder hold, each checked; there is nothing else in it."""
    profiles = [pertoken.load(path) for path in sorted(folder.iterdir())]
    for profile in profiles:
        invariants.check(profile)
    return profiles


def test_what_had_fired_is_written_when_the_dumps_are_asked_for(tmp_path: Path) -> None:
    """Right after the recording has stopped, and also when it was started again before."""
    model = seeded(Stack)
    recording = pertoken.profile(
        model, triggers=[ANY_STEP], dump_folder=tmp_path, dumps_per_hour=1000
    )
    for _ in range(20):
        with recording:
            model(numbers())
    told = [pertoken.load(path).meta["trigger"] for path in recording.dumps]
    assert sum(1 + trigger["others"] for trigger in told) == 20
    assert set(tmp_path.iterdir()) == set(recording.dumps)


def test_stopping_does_not_wait_for_the_dump_but_asking_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, real = threading.Event(), pertoken.dumps.dump

    def slow(*args: Any) -> None:
        may_write.wait(PATIENCE_S)
        real(*args)

    monkeypatch.setattr(pertoken.dumps, "dump", slow)
    model = seeded(Stack)
    with pertoken.profile(model, triggers=[ANY_STEP], dump_folder=tmp_path) as recording:
        model(numbers())
    assert not recording.is_recording and not list(tmp_path.glob("*.pertoken"))
    threading.Timer(0.2, may_write.set).start()
    assert len(recording.dumps) == 1 and len(dumped(tmp_path)) == 1


def test_a_dump_that_takes_too_long_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pertoken.dump_thread, "_PATIENCE_S", 0.05)
    has_begun, may_end = threading.Event(), threading.Event()
    asked: list[tuple[Path, ...]] = []

    def hangs(recording: pertoken.Recording) -> bool:
        has_begun.set()
        may_end.wait(PATIENCE_S)
        asked.append(recording.dumps)  # on the dump's own thread, which does not wait for itself
        return True

    model = seeded(Stack)
    with pertoken.profile(model, triggers=[When(hangs)], dump_folder=tmp_path) as recording:
        model(numbers())
        assert has_begun.wait(PATIENCE_S)
    assert recording.dumps == ()
    may_end.set()
    wait_for(lambda: recording.dumps)
    assert asked == [()]


@pytest.mark.parametrize("is_stopped", [True, False])
def test_the_end_of_the_process_waits_for_dumps(tmp_path: Path, is_stopped: bool) -> None:
    """Of what was just stopped, or is still armed; the exit code is the program's own."""
    run = run_script(
        tmp_path,
        f"""
        recording = pertoken.profile(model, triggers=[StepTime(1e-9)], dump_folder=folder)
        recording.start()
        model(numbers())
        if {is_stopped}:
            recording.stop()
        sys.exit(3)
        """,
    )
    assert (run.returncode, run.stdout, run.stderr) == (3, "", "")
    (profile,) = dumped(tmp_path)
    assert len(profile.steps) == 1 and profile.meta["trigger"]["reason"] == "step_time"


def test_the_end_of_the_process_does_not_wait_for_ever(tmp_path: Path) -> None:
    run = run_script(
        tmp_path,
        """
        import threading
        import pertoken.dump_thread
        pertoken.dump_thread._PATIENCE_S = 0.1
        asked = threading.Event()
        def hangs(recording):
            asked.set()
            time.sleep(1e6)
        recording = pertoken.profile(model, triggers=[When(hangs)], dump_folder=folder)
        recording.start()
        asked.wait()
        """,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def record_in_worker(folder: Path) -> None:
    with pertoken.profile(seeded(Stack), triggers=[ANY_STEP], dump_folder=folder) as recording:
        assert recording.model is not None
        recording.model(numbers())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_end_of_a_worker_waits_for_its_own_dumps(tmp_path: Path, method: str) -> None:
    """Also where the parent has dumps of its own under way, whose thread a fork does not copy."""
    model = seeded(Stack)
    own = pertoken.profile(model, triggers=[ANY_STEP], dump_folder=tmp_path / "own")
    with own:
        process = multiprocessing.get_context(method).Process(
            target=record_in_worker, args=(tmp_path / "worker",)
        )
        process.start()
        process.join(PATIENCE_S)
        assert process.exitcode == 0
        model(numbers())
    assert len(own.dumps) == 1
    (profile,) = dumped(tmp_path / "worker")
    assert profile.meta["pid"] == process.pid and len(profile.steps) == 1


def test_recordings_share_a_folder_and_each_dump_is_of_its_own_model(tmp_path: Path) -> None:
    models = {"Stack": seeded(Stack), "Waits": Waits(), "NoTensors": NoTensors()}
    recordings = {
        name: pertoken.profile(model, triggers=[Signal()], dump_folder=tmp_path)
        for name, model in models.items()
    }
    for recording in recordings.values():
        recording.start()
    for name, model in models.items():
        model(torch.tensor([0.0]) if name == "Waits" else numbers())
    os.kill(os.getpid(), Signal().number)
    for recording in recordings.values():
        recording.stop()
    for name, recording in recordings.items():
        (path,) = recording.dumps
        assert pertoken.load(path).meta["model"]["class"] == name
    assert len(dumped(tmp_path)) == 3


def test_no_dump_takes_the_place_of_another_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers that share the folder may have the same process id, and count from one as well."""
    moment = time.gmtime(0)
    clock = SimpleNamespace(**{**vars(time), "gmtime": lambda: moment})
    monkeypatch.setattr(pertoken.dumps, "time", clock)
    start = f"19700101T000000-{os.getpid()}-"
    (tmp_path / f"{start}001-step_time.pertoken").write_text("another's")
    (tmp_path / f".{start}002-step_time.pertoken.taken").write_text("")  # it is being written
    (tmp_path / f"{start}003-step_time.pertoken").symlink_to("nowhere")
    monkeypatch.setattr(pertoken.dumps, "_numbers", itertools.count(1))
    model = seeded(Stack)
    with pertoken.profile(model, triggers=[ANY_STEP], dump_folder=tmp_path) as recording:
        model(numbers())
    assert [path.name for path in recording.dumps] == [f"{start}004-step_time.pertoken"]
    assert len(pertoken.load(recording.dumps[0]).steps) == 1
    assert (tmp_path / f"{start}001-step_time.pertoken").read_text() == "another's"
    assert len(list(tmp_path.iterdir())) == 4, "nothing of its own besides the dump is left"
