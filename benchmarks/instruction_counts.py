"""How many instructions a recorded call takes, counted by valgrind: a figure without noise.

A process makes some number of calls, and all its main thread's instructions are counted; the
difference between a long and a short run, a call, is what the calls take. A bare callable is
counted the same way, and the rest is the wrapper's. The callables are the package's own, without
torch, which would take valgrind minutes to load. A smoke run counts as many calls as any other.
"""

from __future__ import annotations

import gc
import json
import os
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
FIRST_STEPS = 64
RING_RECORDS = 1 << 16  # more than a run makes
MAIN_THREAD = "-01"  # as callgrind numbers the files of threads


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Counts each kind of call; says why not where valgrind is missing."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return {"missing": "valgrind is not installed"}
    counts = instructions_a_call(valgrind)
    advance(1.0)
    return {
        "instructions_a_call": counts,
        "added_by_wrapper": counts["wrapped"] - counts["bare"],
        "added_by_inactive_wrapper": counts["wrapped, stopped"] - counts["bare"],
    }


def instructions_a_call(valgrind: str) -> dict[str, float]:
    """Instructions of the main thread for one call of each kind, start-up excluded."""
    with tempfile.TemporaryDirectory(prefix="pertoken-bench-") as folder:
        options = [
            "--tool=callgrind",
            "--separate-threads=yes",
            f"--callgrind-out-file={folder}/%p",
        ]
        done = subprocess.run(
            [valgrind, *options, sys.executable, __file__, "count"],
            check=True,
            capture_output=True,
            text=True,
            # Dicts and sets are laid out alike in every run.
            env={**quiet_environment(), "PYTHONHASHSEED": "0"},
            timeout=300,
        )
        total = {
            (kind, calls): _total(Path(folder, f"{pid}{MAIN_THREAD}"))
            for kind, calls, pid in json.loads(done.stdout)
        }
    return {
        kind: (total[kind, LONG_CALLS] - total[kind, SHORT_CALLS]) / (LONG_CALLS - SHORT_CALLS)
        for kind in KINDS
    }


def _total(counted: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", counted.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("callgrind wrote no totals")
    return int(found[1])


def _inner(x: object) -> object:
    return x


class _Module:
    """Calls what stands in its slot, or else its own method, as nn.Module does."""

    slot: Any = None

    def __call__(self, *args: object, **kwargs: object) -> object:
        if self.slot is not None:
            return self.slot(*args, **kwargs)
        return self._call_impl(*args, **kwargs)

    def _call_impl(self, *args: object, **kwargs: object) -> object:
        return None


def _make_wrapped(recorder: Any, weakly: bool = False) -> _Module:
    from pertoken import _native

    module = _Module()
    own = _native.WeakMethod(_Module._call_impl, module) if weakly else module._call_impl
    module.slot = _native.SpanCall(own, recorder, _native.intern_module("child"))
    return module


def _bare(calls: int) -> None:
    """With its own method in the slot, as nn.Module would call it."""
    module = _Module()
    module.slot = module._call_impl
    for _ in range(calls):
        module(None)


def _bare_root(calls: int) -> None:
    for _ in range(calls):
        _call(_inner, None)


def _call(slot: Any, *args: object, **kwargs: object) -> object:
    return slot(*args, **kwargs)


def _wrapped(calls: int, active: bool = True, weakly: bool = False) -> None:
    from pertoken import _native

    recorder = _native.Recorder(STORE_BYTES, RING_RECORDS)
    child = _make_wrapped(recorder, weakly)

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


def _wrapped_weakly(calls: int) -> None:
    """By a wrapper that does not hold the module, as where a whole program is recorded."""
    _wrapped(calls, weakly=True)


def _sampling_recorder() -> Any:
    from pertoken import _native
    from pertoken.record_costs import leave_out_detail

    recorder = _native.Recorder(STORE_BYTES, RING_RECORDS)
    leave_out_detail(recorder, budget=1e-12)  # with its seed no later step has detail
    recorder.start()
    return recorder


def _make_root(inner: Any, recorder: Any) -> Any:
    from contextvars import ContextVar

    from pertoken import _native

    generation_var: ContextVar[Any] = ContextVar("generation")
    site = _native.intern_module("root")
    return _native.RootCall(inner, recorder, site, generation_var, [], False, True, 0)


def _left_out(calls: int) -> None:
    """Calls of a module in a step that was sampled without detail."""
    from pertoken.record_costs import detailed_steps

    recorder = _sampling_recorder()
    child = _make_wrapped(recorder)

    def run() -> None:
        for _ in range(calls):
            child(None)

    for _ in range(FIRST_STEPS):
        _make_root(_inner, recorder)(None)
    before = detailed_steps(recorder)
    _make_root(run, recorder)()
    if detailed_steps(recorder) != before:
        raise RuntimeError("the step had detail: take another seed")


def _sampled_root(calls: int) -> None:
    root = _make_root(_inner, _sampling_recorder())
    for _ in range(calls):
        _call(root, None)


def _root(calls: int) -> None:
    """Steps of a root whose inputs nobody describes: its own bookkeeping."""
    from pertoken import _native

    recorder = _native.Recorder(STORE_BYTES, RING_RECORDS)
    root = _make_root(_inner, recorder)
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
    "bare root": _bare_root,
    "wrapped": _wrapped,
    "wrapped, weakly": _wrapped_weakly,
    "wrapped, stopped": _stopped,
    "wrapped, left out": _left_out,
    "root": _root,
    "root, sampled": _sampled_root,
    "region": _region,
    "step": _step,
}


def _count_all() -> None:
    """Runs each kind for a short and a long while, each in a child of this process.

    The children begin alike, with everything imported, which valgrind takes seconds for.
    """
    import pertoken.record_costs  # noqa: F401

    gc.disable()
    counted = []
    for kind, run in KINDS.items():
        for calls in (SHORT_CALLS, LONG_CALLS):
            pid = os.fork()
            if pid == 0:
                run(calls)
                os._exit(0)
            if os.waitpid(pid, 0)[1] != 0:
                raise RuntimeError(f"the process that counts {kind!r} failed")
            counted.append((kind, calls, pid))
    print(json.dumps(counted))


if __name__ == "__main__":
    if sys.argv[1:2] == ["count"]:
        _count_all()
    else:
        run_script("instructions", measure)
