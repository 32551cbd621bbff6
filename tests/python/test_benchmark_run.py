"""A whole run of the benchmarks can be renewed in part, on its own machine, and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark_runs import BENCHMARKS, newest_results


def run_as_of(module: Any, folder: Path, **changed: Any) -> Path:
    """The file of a run on this machine, but for what is changed of it."""
    script = module("script")
    document = {
        **newest_results(module("report")),
        "machine": script.rounded(module("machine").describe_machine()),
        **changed,
    }
    file = folder / "run.json"
    file.write_text(json.dumps(document))
    return file


def test_what_was_measured_again_takes_the_place_of_the_old_and_says_when(
    module: Any, tmp_path: Path
) -> None:
    run = module("run")
    before = run.whole_run(run_as_of(module, tmp_path, renewed={"micro": "2026-01-01T10:00:00"}))
    after = run.renewed(before, {"store_memory": {"new": 1}}, "2026-01-02T11:12:13+00:00")
    assert after["benchmarks"] == {**before["benchmarks"], "store_memory": {"new": 1}}
    assert after["finished"] == before["finished"] and after["duration_s"] == before["duration_s"]
    assert list(after["renewed"]) == ["micro", "store_memory"]
    page = module("report").render({**before, "renewed": after["renewed"]}, "x.json")
    assert (
        "\n| measured again since | micro (2026-01-01T10:00), store_memory (2026-01-02T11:12) |"
        in page
    )


def test_a_run_of_another_machine_or_of_tiny_sizes_is_not_renewed(
    module: Any, tmp_path: Path
) -> None:
    run = module("run")
    other = {**module("machine").describe_machine(), "cpu": "another", "cores": 4096}
    with pytest.raises(SystemExit, match="other cores, cpu"):
        run.whole_run(run_as_of(module, tmp_path, machine=other))
    with pytest.raises(SystemExit, match="a smoke run"):
        run.whole_run(run_as_of(module, tmp_path, smoke=True))


@pytest.mark.parametrize("wrong", [[], ["--smoke", "micro"], ["--output=x.json", "micro"]])
def test_renewing_names_what_is_to_be_measured(wrong: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", f"--renew={tmp_path / 'run.json'}", *wrong],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "--renew takes the names of benchmarks" in done.stderr
