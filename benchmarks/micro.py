"""Runs test_micro.py under pytest-benchmark and keeps of its report what is quoted."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from script import Advance, quiet_environment, run_script

TESTS = Path(__file__).with_name("test_micro.py")


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """The time of one operation of each benchmark: its median round and the quartiles."""
    with tempfile.TemporaryDirectory(prefix="pertoken-bench-") as folder:
        report = Path(folder, "report.json")
        options = ["--benchmark-disable-gc", "-q", "-p", "no:cacheprovider"]
        if smoke:
            options += ["-k", "span or child"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", str(TESTS), f"--benchmark-json={report}", *options],
            capture_output=True,
            text=True,
            env=quiet_environment(),
            timeout=600,
        )
        if done.returncode:
            raise RuntimeError(f"the microbenchmarks failed:\n{done.stdout}{done.stderr}")
        benchmarks = json.loads(report.read_text())["benchmarks"]
    return {
        _title(benchmark["name"]): {
            "group": benchmark["group"],
            "rounds": benchmark["stats"]["rounds"],
            **{
                f"{name}_ns": benchmark["stats"][name] * 1e9 / _operations(benchmark)
                for name in ("q1", "median", "q3")
            },
        }
        for benchmark in benchmarks
    }


def _title(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


def _operations(benchmark: dict[str, Any]) -> int:
    return int(benchmark["extra_info"].get("operations", 1))


if __name__ == "__main__":
    run_script("microbenchmarks", measure)
