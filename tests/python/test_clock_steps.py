"""The system's clocks step while a process records: time goes on, and it is said in `losses`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from requirements_check import require
from waiting import PATIENCE_S

HERE = str(Path(__file__).parent)

# Stands before the C library's own, and steps one clock of the process when it is told to.
PRELOADED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static volatile long long offset_ns;
static volatile int stepped = -1;
void step_clock(int clock, long long ns) { stepped = clock; offset_ns = ns; }
int clock_gettime(clockid_t clock, struct timespec* now) {
  static int (*real)(clockid_t, struct timespec*);
  if (!real) real = (int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (clock == stepped) {
    long long ns = now->tv_sec * 1000000000ll + now->tv_nsec + offset_ns;
    now->tv_sec = ns / 1000000000ll;
    now->tv_nsec = ns % 1000000000ll;
  }
  return result;
}
"""

SCRIPT = """
    import ctypes, json, sys, time
    sys.path[:0] = [{here!r}]
    import pertoken, torch, invariants
    from odd_modules import Stack, numbers, seeded

    clock, ns = int(sys.argv[1]), int(sys.argv[2])
    model = seeded(Stack)
    with pertoken.profile(model, modules="all") as recording:
        for index in range(40):
            if index in (20, 30):
                recording.result()  # reads the clock
            if index == 20:
                ctypes.CDLL(None).step_clock(clock, ctypes.c_longlong(ns))
            model(numbers())
            time.sleep(0.01)
    profile = recording.result()
    invariants.check(profile, clock_steps=True)
    starts = profile.steps["start_ns"]
    print(json.dumps({{
        "gaps": (starts[1:] - starts[:-1]).tolist(),
        "durations": profile.steps["wall_ns"].tolist(),
        "reasons": profile.losses["reasons"],
    }}))
"""


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = require("cc")
    folder = tmp_path_factory.mktemp("clock")
    source, library = folder / "step_clock.c", folder / "step_clock.so"
    source.write_text(PRELOADED)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def recorded_over_a_step(preloaded: Path, clock: int, ns: int) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT).format(here=HERE), str(clock), str(ns)],
        env={**os.environ, "LD_PRELOAD": str(preloaded)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    result: dict[str, Any] = json.loads(run.stdout)
    return result


SECOND = 1_000_000_000
BOOT, UNIX = 7, 0  # CLOCK_BOOTTIME, CLOCK_REALTIME


def test_a_suspend_lengthens_what_lies_between_two_samples_and_is_said(preloaded: Path) -> None:
    told = recorded_over_a_step(preloaded, BOOT, 3600 * SECOND)
    assert 3600 * SECOND < sum(told["gaps"]) < 3700 * SECOND
    assert all(gap < 10 * SECOND for gap in told["gaps"][:19])  # settled before the step
    assert min(told["gaps"]) >= 0
    assert any("clock jumped" in reason for reason in told["reasons"])


def test_a_boot_clock_that_falls_behind_never_turns_time_back(preloaded: Path) -> None:
    told = recorded_over_a_step(preloaded, BOOT, -5 * SECOND)
    assert min(told["gaps"]) >= 0
    assert min(told["durations"]) >= 0
    assert any("clock jumped" in reason for reason in told["reasons"])


def test_a_set_wall_clock_changes_nothing(preloaded: Path) -> None:
    told = recorded_over_a_step(preloaded, UNIX, 3600 * SECOND)
    assert 0 <= min(told["gaps"]) <= max(told["gaps"]) < 100 * SECOND
    assert told["reasons"] == []
