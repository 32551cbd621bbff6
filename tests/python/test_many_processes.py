"""Four processes with one tensor-parallel model: their files, their clocks, their straggler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import invariants
import parallel_worker as worker
import pertoken
from pertoken import clock_sync
from pertoken.analysis.stragglers import Stragglers
from waiting import PATIENCE_S

WORLD_SIZE = 4
# The planted delay is two thirds of a step. On a busy machine, a rank that shares its core with
# another program is late, too, by less.
LEAST_SHARE = 0.35

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch was built without gloo",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which four ranks have left their files."""
    path = tmp_path_factory.mktemp("ranks")
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment["OMP_NUM_THREADS"] = "1"
    ranks = subprocess.Popen(
        [sys.executable, worker.__file__, str(path), str(WORLD_SIZE)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        errors = ranks.communicate(timeout=PATIENCE_S)[1]
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(ranks.pid, signal.SIGKILL)
    assert ranks.returncode == 0, errors
    return path


def profiles(folder: Path, name: str) -> list[pertoken.Profile]:
    return [pertoken.load(folder / f"{name}-{rank}.pertoken") for rank in range(WORLD_SIZE)]


@pytest.fixture(scope="module")
def even(folder: Path) -> pertoken.Profile:
    return pertoken.merge(profiles(folder, "even"))


@pytest.fixture(scope="module")
def uneven(folder: Path) -> pertoken.Profile:
    return pertoken.merge(profiles(folder, "uneven"))


def test_each_file_says_which_rank_made_it_although_the_group_is_gone(folder: Path) -> None:
    metas = [profile.meta for profile in profiles(folder, "even")]
    assert [meta["rank"] for meta in metas] == [0, 1, 2, 3]
    assert [meta["local_rank"] for meta in metas] == [0, 1, 2, 3]
    assert {meta["world_size"] for meta in metas} == {WORLD_SIZE}
    assert len({meta["pid"] for meta in metas}) == WORLD_SIZE
    assert len({meta["clock"]["boot_id"] for meta in metas}) == 1 and metas[0]["clock"]["boot_id"]


def test_processes_of_one_host_are_joined_by_its_boot_clock(even: pertoken.Profile) -> None:
    table = even.processes
    assert table["clock_basis"].tolist() == ["boot"] * WORLD_SIZE
    assert table["clock_offset_ns"].tolist() == [0] * WORLD_SIZE
    assert (table["clock_error_ns"] >= 0).all()
    origins = [meta["boot_origin_ns"] for meta in even.meta["processes"]]
    assert (np.diff(table["start_ns"]) == np.diff(origins)).all()
    invariants.check_spans(even)


def test_nobody_leaves_a_barrier_before_the_last_has_come(
    even: pertoken.Profile, uneven: pertoken.Profile
) -> None:
    for profile in (even, uneven):
        spans, tracks = profile.spans, profile.tracks
        process = dict(zip(tracks["track"].tolist(), tracks["process"].tolist(), strict=True))
        barriers = spans.where(spans["site"] == "barrier")
        rows = [
            [i for i, track in enumerate(barriers["track"].tolist()) if process[track] == rank]
            for rank in range(WORLD_SIZE)
        ]
        start_ns = np.stack([barriers["start_ns"][own] for own in rows])
        end_ns = start_ns + np.stack([barriers["dur_ns"][own] for own in rows])
        error_ns = np.sort(profile.processes["clock_error_ns"])[-2:].sum()
        assert start_ns.shape == (WORLD_SIZE, 5)
        assert (start_ns.max(axis=0) <= end_ns.min(axis=0) + error_ns).all()


def test_the_planted_straggler_is_named_with_its_module(uneven: pertoken.Profile) -> None:
    found = uneven.stragglers(LEAST_SHARE)
    assert found.unmatched == ()
    (group,) = found.groups
    assert group.clocks_joined
    assert len(group.steps) == group.compared_inside == worker.STEPS - 3
    (late,) = [rank for rank in group.ranks if rank.is_straggler]
    assert (late.rank, late.category) == (worker.SLOW_RANK, "module")
    assert late.site == worker.SLOW_SITE
    assert late.excess_ns > worker.PLANTED_S * 1e9 / 2
    assert late.slowest_share > 0.8
    assert group.slow_steps[0].excess_ns >= late.excess_ns


def test_steps_are_matched_although_a_rank_began_later(uneven: pertoken.Profile) -> None:
    (group,) = uneven.stragglers().groups
    own = group.steps & ((1 << 44) - 1)
    assert (own[:, 0] - own[:, 3] == 3).all()
    assert (own[:, 0] == own[:, 1]).all()


def test_without_a_planted_delay_there_is_no_straggler(even: pertoken.Profile) -> None:
    (group,) = even.stragglers(LEAST_SHARE).groups
    assert len(group.steps) == worker.STEPS
    assert [rank.rank for rank in group.ranks if rank.is_straggler] == []


def test_ranks_are_compared_without_clocks_too(folder: Path) -> None:
    """Of another boot each, as on four hosts whose clocks nobody measured."""
    changed = []
    for profile in profiles(folder, "uneven")[: WORLD_SIZE - 1]:
        meta = profile.meta
        meta["clock"]["boot_id"] = f"boot of rank {meta['rank']}"
        meta["clock"]["synchronized"] = []
        changed.append(pertoken.Profile(profile.tables, meta, profile.losses))
    merged = pertoken.merge(changed)
    assert merged.processes["clock_basis"].tolist() == ["boot", "unix", "unix"]
    assert merged.losses["clock_error_ns"] == -1
    assert sum("Unix time" in reason for reason in merged.losses["reasons"]) == 2
    found: Stragglers = merged.stragglers(LEAST_SHARE)
    (group,) = found.groups
    assert not group.clocks_joined
    assert [r.site for r in group.ranks if r.is_straggler] == [worker.SLOW_SITE]


def test_what_was_synchronized_is_in_the_files(folder: Path) -> None:
    for profile in profiles(folder, "even"):
        clock = profile.meta["clock"]
        assert {m["reference"] for m in clock["synchronized"]} == {clock["boot_id"]}
        assert {(m["offset_ns"], m["error_ns"]) for m in clock["synchronized"]} == {(0, 0)}
        assert len(clock["synchronized"]) == 4  # `result` was taken after both recordings


def test_a_clock_that_differs_is_measured_within_the_stated_error(folder: Path) -> None:
    measured = [
        json.loads((folder / f"clock-{rank}.json").read_text()) for rank in range(WORLD_SIZE)
    ]
    assert [(m["offset_ns"], m["error_ns"]) for m in measured[:2]] == [(0, 0), (0, 0)]
    assert measured[2] == measured[3], "processes of one host share what it measured"
    assert 0 < measured[2]["error_ns"] < 1_000_000_000
    assert abs(measured[2]["offset_ns"] - worker.PLANTED_OFFSET_NS) <= measured[2]["error_ns"]
    assert {m["reference"] for m in measured} == {"this boot"}


def test_synchronizing_without_a_group_says_what_to_do() -> None:
    with pytest.raises(pertoken.PertokenError, match="init_process_group"):
        pertoken.synchronize_clocks()


def test_measurements_held_are_bounded_and_keep_the_first_and_the_latest() -> None:
    log = clock_sync.MeasurementLog(limit=8)
    made = [clock_sync.ClockMeasurement(i, 0, 0, "boot") for i in range(1000)]
    for measured in made:
        log.add(measured)
    held = log.held()
    assert len(held) <= 8
    assert (held[0], held[-1]) == (made[0], made[-1])
    assert list(held) == sorted(held, key=lambda m: m.boot_ns)
