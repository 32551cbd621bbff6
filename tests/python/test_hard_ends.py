"""Processes that are spawned, forked by a server, killed or ended while they record or save."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing

import invariants
import pertoken
from odd_modules import NoTensors, Stack, numbers, seeded
from residue import foreign_values
from waiting import PATIENCE_S

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

HERE = str(Path(__file__).parent)


def record_in_child(model: Any, results: Any) -> None:
    """Runs in a process of its own, with a model that the parent records."""
    model(numbers())
    found = foreign_values(model)  # in a forked child, the parent's wrappers, which call through
    with pertoken.profile(model, modules="all") as own:
        model(numbers())
    profile = own.result()
    invariants.check(profile)
    results.put((os.getpid(), profile.meta["pid"], len(profile.steps)))
    assert foreign_values(model) == found


@pytest.mark.parametrize("package", [multiprocessing, torch.multiprocessing], ids=["std", "torch"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_child_and_parent_record_each_for_itself(package: Any, method: str) -> None:
    model = seeded(Stack)
    context = package.get_context(method)
    results = context.SimpleQueue()
    with pertoken.profile(model, modules="all") as recording:
        model(numbers())
        process = context.Process(target=record_in_child, args=(model, results))
        process.start()
        process.join(PATIENCE_S)
        assert process.exitcode == 0
        model(numbers())
    assert results.get() == (process.pid, process.pid, 1)
    profile = recording.result()
    invariants.check(profile)
    assert len(profile.steps) == 2
    assert profile.meta["pid"] == os.getpid()
    assert foreign_values(model) == []


def run_script(tmp_path: Path, body: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, sys, threading, time\nsys.path[:0] = [{HERE!r}]\n"
        "import torch, pertoken\n"
        "from odd_modules import NoTensors, Stack, numbers, seeded\n"
        "torch.set_num_threads(1)\n" + textwrap.dedent(body)
    )
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", str(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        **kwargs,
    )


SAVES_AND_IS_KILLED = """
    model = seeded(Stack)
    with pertoken.profile(model) as recording:
        model(numbers())
    profile = recording.result()
    profile.save("run.pertoken")
    sync = os.fsync
    def killed(descriptor):
        sync(descriptor)
        os.kill(os.getpid(), 9)
    os.fsync = killed
    with recording:
        model(numbers())
    recording.result().save("run.pertoken")
"""


def test_killed_while_it_saves_the_old_file_stays_and_the_next_save_cleans_up(
    tmp_path: Path,
) -> None:
    run = run_script(tmp_path, SAVES_AND_IS_KILLED, cwd=tmp_path)
    assert run.returncode == -signal.SIGKILL
    target = tmp_path / "run.pertoken"
    profile = pertoken.load(target)
    assert len(profile.steps) == 1
    left = [path.name for path in tmp_path.glob(".*")]
    assert len(left) == 1
    assert left[0].startswith(".run.pertoken.")
    assert left[0].endswith(".tmp")
    profile.save(tmp_path / "another.pertoken")
    assert [path.name for path in tmp_path.glob(".*")] == left
    profile.save(target)
    assert list(tmp_path.glob(".*")) == []
    assert len(pertoken.load(target).steps) == 1


def test_saves_of_several_threads_to_one_name_leave_one_whole_file(tmp_path: Path) -> None:
    model = seeded(Stack)
    with pertoken.profile(model) as recording:
        model(numbers())
    profile = recording.result()
    target = tmp_path / "run.pertoken"
    errors: list[BaseException] = []

    def save() -> None:
        try:
            for _ in range(20):
                profile.save(target)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["run.pertoken"]
    assert len(pertoken.load(target).steps) == 1


def test_a_read_only_folder_is_reported_for_profiles_and_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = NoTensors()
    with pertoken.profile(model) as recording:
        model(numbers())
    folder = tmp_path / "shut"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:  # whom no mode stops: as a file system that is mounted read-only does
        real = os.open

        def refused(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_CREAT and str(path).startswith(str(folder)):
                raise OSError(30, os.strerror(30), path)
            return real(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", refused)
    for write in (recording.result().save, recording.export_chrome_trace):
        with pytest.raises(pertoken.PertokenError, match="shut"):
            write(folder / "file.json")
    assert list(folder.iterdir()) == []


DAEMONS = {
    "whose inputs run Python code": """
        class Slow:
            def __init__(self):
                self.hold = [object()]
            @property
            def shape(self):
                time.sleep(0.002)
                return (1, 1)
            @property
            def is_cpu(self):
                time.sleep(0.002)
                return True
            def get_seq_length(self):
                time.sleep(0.002)
                return 3
        class Model(NoTensors):
            def forward(self, input_ids, past_key_values=None, attention_mask=None):
                return 0
        model = Model()
        recording = pertoken.profile(model, modules="root")
        recording.start()
        def work():
            while True:
                model(Slow(), past_key_values=Slow(), attention_mask=Slow())
    """,
    "whose inputs go in Python code": """
        class Gone(int):
            def __del__(self):
                time.sleep(0.002)
        class Cache:
            def get_seq_length(self):
                return Gone(3)
        class Model(NoTensors):
            def forward(self, input_ids, past_key_values=None):
                return 0
        model, ids = Model(), numbers()
        recording = pertoken.profile(model, modules="root")
        recording.start()
        def work():
            while True:
                model(ids, past_key_values=Cache())
    """,
    "whose steps are an engine's": """
        from pertoken.engines import Engine, Row
        model, ids = NoTensors(), numbers()
        recording = pertoken.profile(model, modules="root")
        recording.start()
        def work():
            engine, number = Engine(), 0
            while True:
                number += 1
                names = [f"{number} {row}" for row in range(32)]
                for name in names:
                    engine.request_arrived(name, tokens_in=1)
                with engine.step([Row(name, "prefill", 1, 0) for name in names]):
                    model(ids)
    """,
    "that read results": """
        model = NoTensors()
        recording = pertoken.profile(model, modules="all")
        recording.start()
        for _ in range(3000):
            model(numbers())
        def work():
            while True:
                recording.recorder.snapshot(0, __import__("numpy").zeros(4, "uint64"))
                recording.totals()
    """,
    "that exit by themselves": """
        model = NoTensors()
        recording = pertoken.profile(model, modules="all")
        recording.start()
        def work():
            with pertoken.request(id=1), pertoken.span("ends"):
                model(numbers())
                sys.exit(3)
    """,
}


@pytest.mark.parametrize("kind", DAEMONS)
def test_the_interpreter_ends_round_daemon_threads(kind: str, tmp_path: Path) -> None:
    body = textwrap.dedent(DAEMONS[kind]) + textwrap.dedent("""
        for _ in range(6):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
        print("end", flush=True)
    """)
    for _ in range(2):
        run = run_script(tmp_path, body)
        assert (run.returncode, run.stdout, run.stderr) == (0, "end\n", "")


MEASURES_ITS_COST = {
    "the log's thread": """
        model = seeded(Stack)
        recording = pertoken.profile(model, log_interval_s=0.05)
        recording.start()
        until = time.monotonic() + 0.055
        while time.monotonic() < until:
            model(numbers())
    """,
    "the dump's thread": """
        model = seeded(Stack)
        with pertoken.profile(model, triggers=[StepTime(1e-7)], dump_folder="dumps"):
            model(numbers())
    """,
    "the dump's thread, of what nobody stops": """
        model = seeded(Stack)
        recording = pertoken.profile(model, triggers=[StepTime(1e-7)], dump_folder="dumps")
        recording.start()
        model(numbers())
    """,
}


@pytest.mark.parametrize("thread", MEASURES_ITS_COST)
def test_the_interpreter_ends_while_the_cost_is_told(thread: str, tmp_path: Path) -> None:
    """The exit code is the program's own: no daemon thread is inside torch when it ends."""
    body = (
        "import logging\nfrom pertoken.triggers import StepTime\n"
        "logging.basicConfig(level=logging.INFO, stream=open(os.devnull, 'w'))\n"
        + textwrap.dedent(MEASURES_ITS_COST[thread])
        + "sys.exit(7)\n"
    )
    for _ in range(3):
        run = run_script(tmp_path, body, cwd=tmp_path)
        assert (run.returncode, run.stdout, run.stderr) == (7, "", "")
