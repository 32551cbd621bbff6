"""How many instructions a recorded call takes, counted by valgrind: a figure without noise.

A process makes some number of calls and counts all its main thread's instructions; the difference
between a long and a short run, a call, is what the calls take. A bare callable is counted the same
way, and the rest is the wrapper's. The callables are the package's own, without torch, which would
take valgrind minutes to load. A smoke run counts as many calls as any other.
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
STORE_BYTES = 64 << 20
RING_RECORDS = 1 << 16  # more than a run makes
MAIN_THREAD = "-01"  # as callgrind numbers the files of threads


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Counts each kind of call; says why not where valgrind is missing."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return {"missing": "valgrind is not installed"}
    counts: dict[str, float] = {}
    for number, kind in enumerate(KINDS):
        counts[kind] = instructions_a_call(valgrind, kind)
        advance((number + 1) / len(KINDS))
    return {
        "instructions_a_call": counts,
        "added_by_wrapper": counts["wrapped"] - counts["bare"],
        "added_by_inactive_wrapper": counts["wrapped, stopped"] - counts["bare"],
    }


def instructions_a_call(valgrind: str, kind: str) -> float:
    """Instructions of the main thread for one call of a kind, start-up excluded."""
    short, long = (_count(valgrind, kind, calls) for calls in (SHORT_CALLS, LONG_CALLS))
    return (long - short) / (LONG_CALLS - SHORT_CALLS)


def _count(valgrind: str, kind: str, calls: int) -> int:
    with tempfile.TemporaryDirectory(prefix="pertoken-bench-") as folder:
        options = [
            "--tool=callgrind",
            "--separate-threads=yes",
            f"--callgrind-out-file={folder}/counts",
        ]
        script = [sys.executable, __file__, "count", kind, str(calls)]
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


def _call(slot: Any, *args: object, **kwargs: object) -> object:
    """Calls what stands in a slot as nn.Module does."""
    return slot(*args, **kwargs)


def _bare(calls: int) -> None:
    for _ in range(calls):
        _call(_inner, None)


def _wrapped(calls: int, active: bool = True) -> None:
    from pertoken import _native

    recorder = _native.Recorder(STORE_BYTES, RING_RECORDS)
    child = _native.SpanCall(_inner, recorder, _native.intern_module("child"))

    def run() -> None:
        for _ in range(calls):
            _call(child, None)

    root = _native.SpanCall(run, recorder, _native.intern_module("root"))
    recorder.start()
    if not active:
        recorder.stop()
    root()


def _stopped(calls: int) -> None:
    _wrapped(calls, active=False)


def _root(calls: int) -> None:
    """Steps of a root whose inputs nobody describes: its own bookkeeping."""
    from contextvars import ContextVar

    from pertoken import _native

    recorder = _native.Recorder(STORE_BYTES, RING_RECORDS)
    generation_var: ContextVar[Any] = ContextVar("generation")
    site = _native.intern_module("root")
    root = _native.RootCall(_inner, recorder, site, generation_var, [], False, True, 0)
    recorder.start()
    for _ in range(calls):
        _call(root, None)


def _step(calls: int) -> None:
    import pertoken
    from pertoken import _native

    recorder = _native.Recorder(STORE_BYTES, RING_RECORDS)
    step = pertoken.step(kind="decode", rows=1, tokens_committed=1)
    recorder.start()
    for _ in range(calls):
        with step:
            pass


def _region(calls: int) -> None:
    import pertoken
    from pertoken import _native

    recorder = _native.Recorder(STORE_BYTES, RING_RECORDS)
    region = pertoken.span("region")
    recorder.start()
    for _ in range(calls):
        with region:
            pass


KINDS = {
    "bare": _bare,
    "wrapped": _wrapped,
    "wrapped, stopped": _stopped,
    "root": _root,
    "region": _region,
    "step": _step,
}


def _run_counted(kind: str, calls: int) -> None:
    # Imported whatever the kind, so that all processes differ in their calls alone.
    import pertoken  # noqa: F401

    gc.disable()
    KINDS[kind](calls)


if __name__ == "__main__":
    if sys.argv[1:2] == ["count"]:
        _run_counted(sys.argv[2], int(sys.argv[3]))
    else:
        run_script("instructions", measure)
