"""Which process a recording says it is of."""

from __future__ import annotations

import io
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pertoken
from pertoken import identity


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def recorded_meta() -> dict[str, Any]:
    model = torch.nn.Linear(2, 2)
    with pertoken.profile(model, modules="root") as recording:
        model(torch.zeros(1, 2))
    return recording.result().meta


def test_without_a_job_ranks_are_unknown_and_the_boot_is_that_of_the_host() -> None:
    meta = recorded_meta()
    assert (meta["rank"], meta["local_rank"], meta["world_size"]) == (None, None, None)
    with open("/proc/sys/kernel/random/boot_id") as stream:
        assert meta["clock"]["boot_id"].startswith(stream.read().strip())
    table = pertoken.profile(torch.nn.Linear(2, 2), modules="root").result().processes
    assert [table[name].tolist() for name in ("rank", "local_rank", "world_size")] == [[-1]] * 3
    assert table["pid"].tolist() == [os.getpid()]


def test_ranks_of_the_environment_count_where_there_is_no_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    meta = recorded_meta()
    assert (meta["rank"], meta["local_rank"], meta["world_size"]) == (5, 1, 8)


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "9" * 40, "²"])
def test_what_is_no_rank_is_unknown(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RANK", text)
    assert identity.ranks_of_environment().rank is None


def test_a_group_counts_more_than_the_environment_and_torch_is_not_imported_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "5")
    group = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_rank=lambda: 2,
        get_world_size=lambda: 4,
    )
    monkeypatch.setitem(sys.modules, "torch.distributed", group)
    assert identity.group_ranks() == identity.Ranks(2, None, 4)
    monkeypatch.delitem(sys.modules, "torch.distributed")
    assert identity.group_ranks() is None
    assert "torch.distributed" not in sys.modules


@pytest.mark.parametrize(
    ("offsets", "suffix"),
    [
        ("monotonic 3 4\nboottime 0 0\n", ""),
        ("monotonic 0 0\nboottime 7 250\n", " shifted by 7 250"),
        (None, ""),
    ],
)
def test_a_time_namespace_that_shifts_the_clock_makes_it_another_one(
    monkeypatch: pytest.MonkeyPatch, offsets: str | None, suffix: str
) -> None:
    def opened(path: str, encoding: str) -> io.StringIO:
        if path.endswith("boot_id"):
            return io.StringIO("abc\n")
        if offsets is None:
            raise FileNotFoundError(path)
        return io.StringIO(offsets)

    monkeypatch.setattr("builtins.open", opened)
    assert identity.boot_id.__wrapped__() == f"abc{suffix}"
