"""How many instructions a recorded call takes, counted by valgrind: a figure without noise.

A process makes some number of calls and counts all its main thread's instructions; the difference
between a long and a short run, a call, is what the calls take. A bare callable is counted the same
way, and the rest is the wrapper's. The callables are the package's own, without torch, which would
take valgrind minutes to load.
"""

from __future__ import annotations

import gc
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from script import Advance, quiet_environment, run_script

SHORT_CALLS = 2_000
LONG_CALLS = 12_000
MAIN_THREAD = "-01"  # as callgrind numbers the files of threads


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Counts each kind of call; says why not where valgrind is missing."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return {"missing": "valgrind is not installed"}
    counts = {}
    for number, kind in enumerate(KINDS):
        short, long = (_count(valgrind, kind, calls) for calls in (SHORT_CALLS, LONG_CALLS))
        counts[kind] = (long - short) / (LONG_CALLS - SHORT_CALLS)
        advance((number + 1) / len(KINDS))
    return {
        "instructions_a_call": counts,
        "added_by_wrapper": counts["wrapped"] - counts["bare"],
        "added_by_inactive_wrapper": counts["wrapped, stopped"] - counts["bare"],
        "added_by_region": counts["region"] - counts["bare context"],
    }


def _count(valgrind: str, kind: str, calls: int) -> int:
    with tempfile.TemporaryDirectory(prefix="pertoken-bench-") as folder:
        options = [
            "--tool=callgrind",
            "--separate-threads=yes",
            f"--callgrind-out-file={folder}/counts",
        ]
        script = [sys.executable, __file__, "--calls", str(calls), "--kind", kind]
        subprocess.run(
            [valgrind, *options, *script],
            check=True,
            capture_output=True,
            # Dicts and sets are laid out alike in every run.
            env={**quiet_environment(), "PYTHONHASHSEED": "0"},
            timeout=300,
        )
        found = next(path for path in Path(folder).iterdir() if path.name.endswith(MAIN_THREAD))
        totals = re.search(r"^(?:totals|summary): (\d+)", found.read_text(), re.MULTILINE)
    if totals is None:
        raise RuntimeError("callgrind wrote no totals")
    return int(totals[1])


def _inner(x: object) -> object:
    return x


class _Context:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        return None


def _bare(calls: int) -> None:
    for _ in range(calls):
        _inner(None)


def _wrapped(calls: int, active: bool = True) -> None:
    from pertoken import _native

    recorder = _native.Recorder(64 << 20, 1 << 16)
    child = _native.SpanCall(_inner, recorder, _native.intern_module("child"))

    def run() -> None:
        for _ in range(calls):
            child(None)

    root = _native.SpanCall(run, recorder, _native.intern_module("root"))
    recorder.start()
    if not active:
        recorder.stop()
    root()


def _stopped(calls: int) -> None:
    _wrapped(calls, active=False)


def _bare_context(calls: int) -> None:
    context = _Context()
    for _ in range(calls):
        with context:
            pass


def _region(calls: int) -> None:
    import pertoken
    from pertoken import _native

    recorder = _native.Recorder(64 << 20, 1 << 16)
    region = pertoken.span("region")
    recorder.start()
    for _ in range(calls):
        with region:
            pass


KINDS = {
    "bare": _bare,
    "wrapped": _wrapped,
    "wrapped, stopped": _stopped,
    "bare context": _bare_context,
    "region": _region,
}


def _run_counted(kind: str, calls: int) -> None:
    # Imported whatever the kind, so that all processes differ in their calls alone.
    import pertoken  # noqa: F401

    gc.disable()
    KINDS[kind](calls)


if __name__ == "__main__":
    if "--kind" in sys.argv:
        _run_counted(sys.argv[sys.argv.index("--kind") + 1], int(sys.argv[sys.argv.index("--calls") + 1]))
    else:
        run_script("instructions", measure)
