"""Triggers: what fires dumps once, with what led to it inside, and the recording goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import invariants
import pertoken
import pertoken.dumps
from odd_modules import Stack, numbers, seeded
from pertoken.dumps import Dumps
from pertoken.errors import RecordingStateError, SelectionError
from pertoken.triggers import NonFinite, Signal, SlowStep, StepTime, When
from test_keep import Waits
from waiting import PATIENCE_S, wait_for

HERE = str(Path(__file__).parent)


def dump_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pertoken-dump"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Any:
    """Each test leaves the process without a thread of ours, and its signals as they were."""
    before = signal.getsignal(signal.SIGUSR2)
    yield
    wait_for(lambda: not dump_threads())
    assert signal.getsignal(signal.SIGUSR2) == before


def test_a_planted_slow_step_dumps_once_with_that_step_inside(tmp_path: Path) -> None:
    model = Waits()
    recording = pertoken.profile(
        model,
        modules="all",
        keep="10s",
        triggers=[StepTime(over_s=0.4)],
        dump_folder=tmp_path / "dumps",
    )
    with recording:
        for seconds in (0.0, 0.0, 0.6, 0.0):
            model(torch.tensor([seconds]))
        wait_for(lambda: recording.dumps)
        model(torch.tensor([0.0]))
    wait_for(lambda: not dump_threads())
    profile = recording.result()
    invariants.check(profile)
    assert len(profile.steps) == 5, "the recording went on, and lost nothing"
    assert set(recording.dumps) == set((tmp_path / "dumps").iterdir()), "whole, and no other file"
    dumps = {path: pertoken.load(path).meta["trigger"] for path in recording.dumps}
    # Another step may be slow, too, where the machine held it up.
    slow = profile.steps.where(profile.steps["wall_ns"] > 400_000_000)["step"].tolist()
    assert {trigger["step"] for trigger in dumps.values()} <= set(slow)
    assert sum(1 + trigger["others"] for trigger in dumps.values()) == len(slow)
    (path,) = [path for path, trigger in dumps.items() if trigger["step"] == 2]
    assert path.name.endswith("-step_time.pertoken") and str(os.getpid()) in path.name
    dumped = pertoken.load(path)
    invariants.check(dumped)
    trigger = dumped.meta["trigger"]
    assert trigger["reason"] == "step_time"
    assert trigger["kind"] == "other" and trigger["over_ns"] == 400_000_000
    steps = dumped.steps["step"].tolist()
    assert set(steps) >= {0, 1, 2}, "what led to it is there"
    assert "Dumped because step 2 (other) took" in str(dumped.summary())
    slow_ns = int(dumped.steps["wall_ns"][steps.index(2)])
    assert slow_ns >= 600_000_000 and trigger["wall_ns"] == slow_ns


def test_the_last_step_before_the_end_fires_as_well(tmp_path: Path) -> None:
    model = Waits()
    trigger = StepTime(over_s=0.3, kind="other")
    with pertoken.profile(model, triggers=[trigger], dump_folder=tmp_path) as recording:
        model(torch.tensor([0.5]))
    wait_for(lambda: recording.dumps)
    assert len(recording.dumps) == 1
    with pertoken.profile(
        model, triggers=[StepTime(over_s=0.3, kind="decode")], dump_folder=tmp_path
    ) as other:
        model(torch.tensor([0.5]))
    wait_for(lambda: not dump_threads())
    assert other.dumps == (), "it was of another kind"


def test_a_time_is_learned_from_the_steps_before(tmp_path: Path) -> None:
    model = Waits()
    trigger = SlowStep(factor=50.0, quantile=0.5, min_steps=20)
    recording = pertoken.profile(model, triggers=[trigger], dump_folder=tmp_path)
    with recording:
        for _ in range(25):
            model(torch.tensor([0.005]))
    learned_ns = 50 * float(np.median(recording.result().steps["wall_ns"]))
    with recording:  # what was learned is looked at here, and then once a second
        model(torch.tensor([1.5e-9 * learned_ns]))
    wait_for(lambda: not dump_threads())
    triggers = [pertoken.load(path).meta["trigger"] for path in recording.dumps]
    (told,) = [trigger for trigger in triggers if trigger["step"] == 25]
    assert told["reason"] == "slow_step"
    assert learned_ns * 0.8 < told["over_ns"] < learned_ns * 1.2 < told["wall_ns"]


def test_a_planted_nan_dumps_with_its_observation_inside(tmp_path: Path) -> None:
    model = seeded(Stack)
    recording = pertoken.profile(
        model,
        activations="*",
        activation_every=1,
        activation_rows=True,
        triggers=[NonFinite()],
        dump_folder=tmp_path,
    )
    with recording:
        model(numbers())
        for _ in range(3):  # and the sites behind it, but each only once
            with torch.no_grad():
                model.layers[1].attn.bias[2] = float("nan")
            model(numbers())
        wait_for(lambda: recording.dumps)
    wait_for(lambda: not dump_threads())
    assert 1 <= len(recording.dumps) <= 2, "the first step may be looked at in two rounds"
    dumped = pertoken.load(recording.dumps[0])
    invariants.check(dumped)
    trigger = dumped.meta["trigger"]
    assert recording.dumps[0].name.endswith("-non_finite.pertoken")
    assert (trigger["reason"], trigger["site"]) == ("non_finite", "layers.1.attn")
    assert (trigger["step"], trigger["kind"], trigger["row"]) == (1, "other", 0)
    assert (trigger["nans"], trigger["infs"]) == (1, 0)
    assert dumped.first_nonfinite().site == "layers.1.attn"
    assert "Dumped because layers.1.attn put out 1 NaN and 0 infinite in step 1." in str(
        dumped.summary()
    )


def test_infinite_values_by_hand_fire_where_they_are_asked_for(tmp_path: Path) -> None:
    model = seeded(Stack)
    value = torch.tensor([float("inf"), 1.0])
    for infinities in (False, True):
        triggers = [NonFinite(infinities=infinities)]
        recording = pertoken.profile(
            model, activation_every=1, triggers=triggers, dump_folder=tmp_path
        )
        with recording:
            pertoken.observe("mine", value)
        wait_for(lambda: not dump_threads())
        assert len(recording.dumps) == infinities
    trigger = pertoken.load(recording.dumps[0]).meta["trigger"]
    assert trigger["site"] == "mine" and trigger["infs"] == 1 and "step" not in trigger


def test_the_interpreter_ends_with_triggers_armed(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "import pertoken\n"
        "from odd_modules import Stack, numbers, seeded\n"
        "from pertoken.triggers import Signal, StepTime, When\n"
        "model = seeded(Stack)\n"
        "triggers = [Signal(), StepTime(1e5), When(lambda recording: False, every_s=0.001)]\n"
        "folder = sys.argv[1]\n"
        "recording = pertoken.profile(\n"
        "    model, keep='5s', triggers=triggers, dump_folder=folder, spool=folder)\n"
        "recording.start()\n"
        "model(numbers())\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", script, str(tmp_path), HERE],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(pertoken.recover(tmp_path).steps) == 1


def test_dumps_an_hour_are_bounded_and_the_rest_is_counted(tmp_path: Path) -> None:
    model = seeded(Stack)
    asked = []

    def always(recording: pertoken.Recording) -> str:
        asked.append(recording)
        return "because"

    recording = pertoken.profile(
        model, triggers=[When(always, every_s=0.02)], dump_folder=tmp_path, dumps_per_hour=2
    )
    with recording:
        model(numbers())
        wait_for(lambda: len(asked) >= 5)
        assert asked[0] is recording
    wait_for(lambda: not dump_threads())
    assert len(recording.dumps) == 2
    meta = pertoken.load(recording.dumps[1]).meta
    assert meta["trigger"]["answer"] == "because" and meta["trigger"]["reason"] == "when"
    assert "Dumped: when, because." in str(pertoken.load(recording.dumps[1]).summary())
    assert any("dumps of the hour" in reason for reason in recording.result().losses["reasons"])


def test_an_hour_after_the_first_dumps_there_may_be_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: now_s})
    monkeypatch.setattr(pertoken.dumps, "time", clock)
    recording = pertoken.profile(seeded(Stack))
    dumps = Dumps([StepTime(over_s=1)], tmp_path, dumps_per_hour=2)
    given = []
    for minutes in (0, 30, 10, 19, 2, 1, 27, 2):  # from one to the next
        now_s += minutes * 60
        before = len(dumps.paths)
        dumps.dump(recording, {"reason": "when"})
        given.append(len(dumps.paths) > before)
    assert given == [True, True, False, False, True, False, False, True]
    assert dumps.suppressed == 4
    assert pertoken.load(dumps.paths[-1]).meta["trigger"]["suppressed"] == 4


def test_what_a_function_raises_is_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = seeded(Stack)

    def fails(recording: pertoken.Recording) -> bool:
        raise ValueError("not today")

    trigger = When(fails, every_s=0.01)
    with pertoken.profile(model, triggers=[trigger], dump_folder=tmp_path) as recording:
        wait_for(lambda: sum(recording.faults.values()) >= 3)
        assert len(model(numbers()))
    assert recording.dumps == () and list(tmp_path.iterdir()) == []
    assert sum("not today" in record.message for record in caplog.records) == 1


def test_a_signal_dumps_and_is_handled_as_before(tmp_path: Path) -> None:
    model = seeded(Stack)
    received = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    own = signal.getsignal(signal.SIGUSR2)
    try:
        with pertoken.profile(model, triggers=[Signal()], dump_folder=tmp_path) as recording:
            model(numbers())
            os.kill(os.getpid(), signal.SIGUSR2)
            wait_for(lambda: recording.dumps)
        assert signal.getsignal(signal.SIGUSR2) is own
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert received == [signal.SIGUSR2]
    meta = pertoken.load(recording.dumps[0]).meta
    assert meta["trigger"]["signal"] == signal.SIGUSR2


def test_a_signal_needs_the_main_thread(tmp_path: Path) -> None:
    model = seeded(Stack)
    recording = pertoken.profile(model, triggers=[Signal()], dump_folder=tmp_path)
    raised: list[BaseException] = []

    def start() -> None:
        try:
            recording.start()
        except RecordingStateError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])
    assert not recording.is_recording and "_compiled_call_impl" not in model.__dict__


def test_by_hand_it_dumps_at_any_time(tmp_path: Path) -> None:
    model = seeded(Stack)
    with pertoken.profile(model) as recording:
        model(numbers())
        recording.dump(tmp_path / "now.pertoken")
        model(numbers())
    dumped = pertoken.load(tmp_path / "now.pertoken")
    assert len(dumped.steps) == 1 and dumped.meta["trigger"]["reason"] == "by_hand"
    assert len(recording.result().steps) == 2
    with pytest.raises(pertoken.PertokenError, match="cannot"):
        recording.dump(tmp_path / "absent" / "now.pertoken")


@pytest.mark.parametrize(
    "make",
    [
        lambda: StepTime(over_s=0),
        lambda: StepTime(over_s=float("nan")),
        lambda: StepTime(over_s=1, kind="typing"),
        lambda: SlowStep(quantile=1.5),
        lambda: StepTime("1"),
        lambda: StepTime(None),
        lambda: StepTime(True),
        lambda: StepTime(1, kind=2),
        lambda: SlowStep(factor=-1),
        lambda: SlowStep(factor="2"),
        lambda: SlowStep(min_steps=1.5),
        lambda: SlowStep(min_steps=True),
        lambda: NonFinite("x"),
        lambda: NonFinite(None),
        lambda: When("function"),
        lambda: When(print, every_s=0),
        lambda: When(print, every_s="1"),
        lambda: Signal(12.0),
        lambda: Signal(True),
        lambda: Signal("SIGUSR2"),
        lambda: Signal([12]),
        lambda: Signal(signal.SIGKILL),
        lambda: pertoken.profile(seeded(Stack), triggers=["slow"]),
        lambda: pertoken.profile(seeded(Stack), triggers=StepTime(1)),
        lambda: pertoken.profile(seeded(Stack), triggers=5),
        lambda: pertoken.profile(seeded(Stack), triggers=0),
        lambda: pertoken.profile(seeded(Stack), triggers=StepTime),
        lambda: pertoken.profile(seeded(Stack), triggers=[StepTime]),
        lambda: pertoken.profile(seeded(Stack), triggers=[StepTime(1)], dumps_per_hour=0),
        lambda: pertoken.profile(seeded(Stack), dumps_per_hour="6"),
        lambda: pertoken.profile(seeded(Stack), dumps_per_hour=None),
        lambda: pertoken.profile(seeded(Stack), dumps_per_hour=1.5),
        lambda: pertoken.profile(seeded(Stack), dumps_per_hour=True),
        lambda: pertoken.profile(seeded(Stack), dumps_per_hour=10**30),
        lambda: pertoken.profile(seeded(Stack), dump_folder=None),
        lambda: pertoken.profile(seeded(Stack), triggers=[StepTime(1)], dump_folder=5),
        lambda: pertoken.profile(seeded(Stack), spool=5),
    ],
)
def test_what_cannot_fire_is_refused(make: Callable[[], Any]) -> None:
    """By one error that names the argument, when the object is made."""
    with pytest.raises(SelectionError, match=r"give|a step is one of"):
        make()


def test_numbers_of_other_libraries_are_numbers(tmp_path: Path) -> None:
    model = seeded(Stack)
    triggers = [
        StepTime(np.float32(1e5)),
        SlowStep(factor=np.int64(9), min_steps=np.int32(5)),
        Signal(np.int64(signal.SIGUSR2)),
    ]
    with pertoken.profile(
        model, triggers=triggers, dump_folder=os.fsencode(tmp_path), dumps_per_hour=np.int64(2)
    ) as recording:
        signal.raise_signal(signal.SIGUSR2)
    assert [path.parent for path in recording.dumps] == [tmp_path]


def test_where_nothing_is_observed_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`NonFinite` sees then only what is observed by hand, which is said when it starts."""
    model = seeded(Stack)
    for activations in (None, "*"):
        recording = pertoken.profile(
            model, triggers=[NonFinite()], activations=activations, dump_folder=tmp_path
        )
        for _ in range(2):
            with recording:
                model(numbers())
        told = [record.message for record in caplog.records if "activations=" in record.message]
        assert len(told) == 1, "of the first recording, when it started first"
        assert "pertoken.observe" in told[0]


def test_a_dump_that_cannot_be_written_is_a_fault_and_no_more(tmp_path: Path) -> None:
    model = seeded(Stack)
    folder = tmp_path / "dumps"

    def fire(recording: pertoken.Recording) -> bool:
        folder.rename(tmp_path / "gone")
        return True

    trigger = When(fire, every_s=0.05)
    with pertoken.profile(model, triggers=[trigger], dump_folder=folder) as recording:
        wait_for(lambda: recording.faults)
        model(numbers())
    assert recording.dumps == ()
