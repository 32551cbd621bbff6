"""What recording adds to a decode step on a GPU: eager and in CUDA graphs, beside other profilers.

The decode is that of `gpu_decode.py`: a step is one forward and the wait for it, as when the token
is read. Variants run interleaved, as `paired` says. A graph is captured once for each variant, by
the same calls, so that those of pertoken hold its stamps and the others none.

Without a GPU only the smoke run does anything: a toy model on the processor shows that the
benchmark works. Its times are no figures.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

import pertoken
from decode_overhead import recording_variant
from gpu_decode import Decode, Tool, as_step, measure_cases, running
from paired import Variant, compare
from script import Advance, run_script

BUDGET = 0.01  # that of the budgets' documentation
BUDGETED = f"pertoken layers, budget {BUDGET:.0%}"


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Compares every variant for each shape, batch and mode."""
    return measure_cases(_case, smoke=smoke, advance=advance, budget=BUDGET)


def _case(rounds: int, decode: Decode, mode: str, advance: Advance) -> dict[str, Any]:
    decode.forward()
    recordings = {
        "pertoken root": pertoken.profile(decode.model, modules="root"),
        "pertoken layers": pertoken.profile(decode.model, modules="layers"),
        BUDGETED: pertoken.profile(decode.model, modules="layers", budget=BUDGET),
    }
    is_graph = mode == "graph"
    plain = decode.captured() if is_graph else decode.forward
    decode.run = plain
    variants = []
    for name, recording in recordings.items():
        run = plain
        if is_graph:
            with recording:
                run = as_step(decode.captured())
        within = partial(running, decode, run)
        variants.append(recording_variant(name, recording, within=within))
    for name, tool in _other_tools(decode.device).items():
        variants.append(Variant(name, partial(running, decode, plain, tool)))
    estimates = compare(variants, decode.block, rounds=rounds, advance=advance)
    layers = recordings["pertoken layers"].result()
    return {
        "variants": estimates,
        "boundaries_a_step": _boundaries_a_step(layers),
        "stop_ns": _stop_ns(decode, recordings["pertoken layers"], variants[1]),
        "device_spans_lost": layers.losses.get("device_spans_lost", {}),
    }


def _other_tools(device: str) -> dict[str, Tool]:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    tools: dict[str, Tool] = {"torch.profiler": partial(profile, activities=activities)}
    if device == "cuda" and importlib.util.find_spec("triton") is not None:
        tools["Proton"] = _proton
    return tools


@contextmanager
def _proton() -> Iterator[None]:
    proton = importlib.import_module("triton.profiler")
    with tempfile.TemporaryDirectory() as folder:
        proton.start(str(Path(folder, "proton")))
        try:
            yield
        finally:
            proton.finalize()


def _boundaries_a_step(profile: pertoken.Profile) -> float:
    """Of the spans on the device, as the median over the steps: events, or stamps in a graph."""
    spans = profile.spans
    spans = spans.where((spans["device"] >= 0) & (spans["step"] >= 0))
    counts = []
    for step in np.unique(spans["step"]):
        own = spans.where(spans["step"] == step)
        ends = own["start_ns"] + own["dur_ns"]
        counts.append(len(np.union1d(own["start_ns"], ends)))
    return float(np.median(counts)) if counts else 0.0


def _stop_ns(decode: Decode, recording: pertoken.Recording, variant: Variant) -> float:
    """How long `stop()` takes behind a block, the device idle; the longest of five."""
    longest = 0
    for _ in range(5):
        with variant.context():
            decode.block()
            start_ns = perf_counter_ns()
            recording.stop()
            longest = max(longest, perf_counter_ns() - start_ns)
    return float(longest)


if __name__ == "__main__":
    run_script("overhead on a GPU", measure)
