"""`keep`: the last seconds, or so many bytes, are held, and nothing older."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import invariants
import pertoken
from odd_modules import Stack, numbers, seeded
from pertoken.errors import SelectionError
from pertoken.retention import Retention, retention


class Waits(nn.Module):
    """Sleeps for as long as its input says, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)

    def forward(self, seconds: torch.Tensor) -> torch.Tensor:
        time.sleep(float(seconds))
        return self.inner(seconds)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (None, Retention()),
        ("5s", Retention(time_ns=5 * 10**9)),
        ("2.5 s", Retention(time_ns=2_500_000_000)),
        ("500ms", Retention(time_ns=500_000_000)),
        ("2min", Retention(time_ns=120 * 10**9)),
        ("2 min", Retention(time_ns=120 * 10**9)),
        ("64MB", Retention(memory_bytes=64 << 20)),
        ("64 MB", Retention(memory_bytes=64 << 20)),
        (" 5  MiB ", Retention(memory_bytes=5 << 20)),
        ("5M", Retention(memory_bytes=5 << 20)),
        (1 << 21, Retention(memory_bytes=1 << 21)),
    ],
)
def test_times_and_sizes_are_told_apart(keep: Any, expected: Retention) -> None:
    assert retention(keep) == expected


@pytest.mark.parametrize(
    "keep", ["", "5", "-1s", "0s", "5 weeks", "nans", 5.0, True, b"5s", "9e9s", "6 4MB", "64 "]
)
def test_what_is_neither_is_refused(keep: Any) -> None:
    with pytest.raises(SelectionError, match="keep="):
        pertoken.profile(seeded(Stack), keep=keep)


@pytest.mark.parametrize("keep", ["5m", " 5 m ", "1.5m"])
def test_what_could_be_minutes_or_megabytes_is_refused(keep: str) -> None:
    with pytest.raises(SelectionError, match=r"5min' for minutes, or '[15.]+MiB' for a size"):
        retention(keep)


def test_the_last_seconds_are_held_whole_and_nothing_older() -> None:
    model = Waits()
    whole = pertoken.profile(model, modules="root")
    with whole, pertoken.profile(model, modules="all", keep="300ms") as recording:
        for _ in range(60):
            model(torch.tensor([0.01]))
        profile = recording.result()
    invariants.check(profile)
    ends = profile.steps["start_ns"] + profile.steps["wall_ns"]
    assert ends[-1] - ends[0] <= 300_000_000
    # What has gone had to go: it ended before, so that it began before, whoever else looked.
    last_gone = whole.result().steps["start_ns"][profile.steps["step"][0] - 1]
    apart_ns = whole.result().meta["boot_origin_ns"] - profile.meta["boot_origin_ns"]
    assert ends[-1] - (last_gone + apart_ns) > 300_000_000
    steps = profile.steps["step"].tolist()
    assert steps == list(range(steps[0], 60)) and steps[0] > 0
    assert profile.losses["steps_evicted"] == steps[0]
    assert np.bincount(profile.spans["step"] - steps[0]).tolist() == [2] * len(steps)
    assert profile.totals.steps["other"].begun == 60, "totals count what has gone"


def test_a_pause_and_the_end_lose_nothing() -> None:
    model = Waits()
    with pertoken.profile(model, keep="200ms") as recording:
        model(torch.tensor([0.0]))
        time.sleep(0.3)
        assert len(recording.result().steps) == 1
    time.sleep(0.05)
    assert len(recording.result().steps) == 1


def test_a_step_that_runs_longer_is_held() -> None:
    model = Waits()
    with pertoken.profile(model, modules="all", keep="50ms") as recording:
        model(torch.tensor([0.0]))
        model(torch.tensor([0.2]))
        assert recording.result().steps["step"].tolist() == [1]


def test_bytes_bound_the_memory() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="all", keep="1MB") as recording, torch.inference_mode():
        for _ in range(4000):
            model(numbers())
    assert recording.memory_limit_bytes == 1 << 20
    assert recording.recorder.store_bytes <= 1 << 20
    assert recording.result().losses["steps_evicted"] > 0
