"""Builds and runs native_micro.cpp, and makes ratios and intervals of its rounds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from paired import median_interval
from script import Advance, run_script

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build-bench"
PROGRAM = "native_micro"
BASELINE = "clock_read_ns"


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """The nanoseconds of each native operation, and its ratio to a bare clock read."""
    program = build()
    advance(0.5)
    rounds = 10 if smoke else 400
    printed = subprocess.run(
        [program, str(rounds)], check=True, capture_output=True, text=True, timeout=300
    ).stdout
    data = json.loads(printed)
    clock_ns = data[BASELINE]
    result: dict[str, Any] = {
        "rounds": rounds,
        "operations_a_round": data["operations_a_round"],
        "dropped": data["dropped"],
        "operations": {},
    }
    for name, rounds_ns in data.items():
        if isinstance(rounds_ns, list):
            in_turn = zip(rounds_ns, clock_ns, strict=True)
            result["operations"][name.removesuffix("_ns")] = {
                "ns": median_interval(rounds_ns),
                "ratio": median_interval(ours / clock for ours, clock in in_turn),
            }
    drain_ns = data["drain_record_ns"]
    result["drained_records_a_second"] = median_interval(1e9 / ns for ns in drain_ns)
    return result


def build() -> Path:
    """Builds the program as the package is built, and returns it."""
    cmake = _tool("cmake")
    options = [
        "-DPERTOKEN_BUILD_BENCHMARKS=ON",
        "-DPERTOKEN_BUILD_MODULE=OFF",
        "-DPERTOKEN_CUDA=OFF",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    _run([cmake, "-S", str(ROOT), "-B", str(BUILD), *options])
    _run([cmake, "--build", str(BUILD), "--target", PROGRAM, "--parallel", "2"])
    return BUILD / PROGRAM


def _tool(name: str) -> str:
    own = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([own, os.environ.get("PATH", "")]))
    if found is None:
        raise RuntimeError(f"{name} is needed to build the native microbenchmarks")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    run_script("native operations", measure)
