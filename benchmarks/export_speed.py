"""How fast a Chrome trace is written, beside torch.profiler's own writer in the same run.

Each of the two writes its own events: pertoken a profile of a million spans, torch.profiler what it
recorded of a decode. Every repeat is one file of each, in turns, in one folder. The memory is the
growth of the process's high-water mark while pertoken writes, for two sizes of profile.
"""

from __future__ import annotations

import gc
import gzip
import mmap
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import pertoken
from hooks import torch_profiler
from paired import median_interval
from script import Advance, run_script
from skeleton import recording_of_skeleton, require_spans
from tiny_llama import decode_by_hand, prompt_ids, tiny_llama

WRITERS = ("pertoken_json", "torch_json", "pertoken_gzip")
EVENT = re.compile(rb'"ph":')
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Exports in turns, and finds the memory that a small and a large export take."""
    repeats, spans, decode_steps = (1, 5_000, 10) if smoke else (7, 1_200_000, 250)
    small, large = (_profile(size) for size in (spans // 4, spans))
    advance(0.1)
    model, prompt = tiny_llama(), prompt_ids()
    times: dict[str, list[int]] = {name: [] for name in WRITERS}
    events: dict[str, list[int]] = {name: [] for name in WRITERS}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="pertoken-bench-") as folder:
        plain, zipped = Path(folder, "trace.json"), Path(folder, "trace.json.gz")
        growth = {
            name: peak_growth_bytes(partial(profile.export_chrome_trace, plain))
            for name, profile in (("small", small), ("large", large))
        }
        for repeat in range(repeats):
            profiler = _profiled_decode(model, prompt, decode_steps)
            exports: dict[str, tuple[Callable[[], object], Path]] = {
                "pertoken_json": (partial(large.export_chrome_trace, plain), plain),
                "torch_json": (partial(profiler.export_chrome_trace, str(plain)), plain),
                "pertoken_gzip": (partial(large.export_chrome_trace, zipped), zipped),
            }
            for name, (export, path) in exports.items():
                gc.collect()
                start_ns = perf_counter_ns()
                export()
                times[name].append(perf_counter_ns() - start_ns)
                # torch.profiler's events are not as many in each repeat.
                events[name].append(count_events(path))
                sizes[name] = path.stat().st_size
                path.unlink()
            advance(0.1 + 0.9 * (repeat + 1) / repeats)
    rates = {
        name: [
            count / (time_ns / 1e9)
            for count, time_ns in zip(events[name], times[name], strict=True)
        ]
        for name in WRITERS
    }
    in_turn = zip(rates["pertoken_json"], rates["torch_json"], strict=True)
    return {
        "repeats": repeats,
        "spans": {"small": len(small.spans), "large": len(large.spans)},
        "peak_growth_bytes": growth,
        "writers": {
            name: {
                "events": events[name][-1],
                "file_bytes": sizes[name],
                "events_a_second": median_interval(rates[name]),
            }
            for name in WRITERS
        },
        "times_torch": median_interval(ours / theirs for ours, theirs in in_turn),
    }


def count_events(path: Path) -> int:
    """How many events a trace holds."""
    if path.suffix == ".gz":
        return sum(1 for _ in EVENT.finditer(gzip.decompress(path.read_bytes())))
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return sum(1 for _ in EVENT.finditer(text))


def peak_growth_bytes(run: Callable[[], object]) -> int | None:
    """How far the process's memory rose above what it was, while `run` ran; None if not known."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return None
    before = status_bytes("VmRSS")
    run()
    return max(0, status_bytes("VmHWM") - before)


def status_bytes(field: str) -> int:
    """A field of the process's status that counts memory."""
    found = re.search(rf"^{field}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{STATUS} has no {field}")
    return int(found[1]) * 1024


def _profiled_decode(model: Any, prompt: Any, steps: int) -> Any:
    """A finished run of torch.profiler; it can be exported once."""
    with torch_profiler() as profiler:
        decode_by_hand(model, prompt, steps)
    return profiler


def _profile(spans: int) -> pertoken.Profile:
    profile = recording_of_skeleton(spans).result()
    require_spans(profile, spans)
    return profile


if __name__ == "__main__":
    run_script("speed of export", measure)
