"""What recording adds to a decode step on a GPU: eager and in CUDA graphs, beside other profilers.

Llamas of about 1B and 8B parameters in bfloat16, with random weights and a static cache, at batch 1
and 32. A step is one forward and the wait for it, as when the token is read. Variants run
interleaved, as `paired` says. A graph is captured once for each variant, by the same calls, so that
those of pertoken hold its stamps and the others none.

Without a GPU only the smoke run does anything: a toy model on the processor, where a "graph" is the
forward itself, shows that the benchmark works. Its times are no figures.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from transformers import StaticCache

import pertoken
from decode_overhead import recording_variant
from gpu_device import NO_GPU, describe_gpu, has_gpu
from gpu_llama import SHAPES, TOY, Shape, gpu_llama
from paired import Variant, compare
from script import Advance, part, run_script

WARM_UP_STEPS = 4
BUDGET = 0.01  # that of the budgets' documentation
BUDGETED = f"pertoken layers, budget {BUDGET:.0%}"
MODES = ("eager", "graph")
Run = Callable[[], object]
Tool = Callable[[], AbstractContextManager[object]]


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Compares every variant for each shape, batch and mode."""
    if not has_gpu() and not smoke:
        return {"measured": False, "reason": NO_GPU}
    device = "cuda" if has_gpu() else "cpu"
    rounds, steps = (3, 4) if smoke else (20, 32)
    batches = (1,) if smoke else (1, 32)
    cases = [
        (shape, batch, mode)
        for shape in ((TOY,) if smoke else SHAPES)
        for batch in batches
        for mode in MODES
    ]
    result: dict[str, Any] = {
        "measured": has_gpu() and not smoke,
        "gpu": describe_gpu(),
        "rounds": rounds,
        "steps_a_block": steps,
        "budget": BUDGET,
        "cases": [],
    }
    model: Any = None
    held = ""
    for number, (shape, batch, mode) in enumerate(cases):
        if held != shape.name:
            model = None  # before the next one takes its memory
            model, held = gpu_llama(shape, device), shape.name
        with torch.inference_mode():
            decode = _Decode(model, shape, batch, WARM_UP_STEPS + steps, device)
            done = _case(decode, mode, rounds, part(advance, number, len(cases)))
        result["cases"].append({"shape": shape.name, "batch": batch, "mode": mode, **done})
        del decode
    return result


class _Decode:
    """A model, what a step is given, and what runs it now."""

    def __init__(self, model: Any, shape: Shape, batch: int, steps: int, device: str) -> None:
        self.model, self.steps, self.device = model, steps, device
        self.cache: Any = StaticCache(config=model.config, max_cache_len=steps + 2)
        self.ids = torch.randint(1, shape.vocabulary, (batch, 1), device=device)
        self.positions = torch.zeros(batch, 1, dtype=torch.long, device=device)
        # Given, so that no step makes one: what is captured must not ask for lengths.
        self.mask = torch.zeros(batch, 1, 1, steps + 2, dtype=model.dtype, device=device)
        self.run: Run = self.forward

    def forward(self) -> None:
        self.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )

    def captured(self) -> Run:
        """The forward as a graph; on the processor as it is."""
        if self.device == "cpu":
            return self.forward
        new_stream: Any = torch.cuda.Stream
        side = new_stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.forward()
        torch.cuda.current_stream().wait_stream(side)
        self.cache.reset()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.forward()
        return graph.replay

    def block(self) -> list[int]:
        """Decodes from an empty cache; the nanoseconds of each step after the warm-up."""
        self.cache.reset()
        durations_ns = []
        for _ in range(self.steps):
            start_ns = perf_counter_ns()
            self.run()
            if self.device == "cuda":
                torch.cuda.synchronize()
            durations_ns.append(perf_counter_ns() - start_ns)
        return durations_ns[WARM_UP_STEPS:]


def _case(decode: _Decode, mode: str, rounds: int, advance: Advance) -> dict[str, Any]:
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
                run = _as_step(decode.captured())
        within = partial(_running, decode, run)
        variants.append(recording_variant(name, recording, within=within))
    for name, tool in _other_tools(decode.device).items():
        variants.append(Variant(name, partial(_running, decode, plain, tool)))
    estimates = compare(variants, decode.block, rounds=rounds, advance=advance)
    layers = recordings["pertoken layers"].result()
    return {
        "variants": estimates,
        "boundaries_a_step": _boundaries_a_step(layers),
        "stop_ns": _stop_ns(decode, recordings["pertoken layers"], variants[1]),
        "device_spans_lost": layers.losses.get("device_spans_lost", {}),
    }


@contextmanager
def _running(decode: _Decode, run: Run, tool: Tool = nullcontext) -> Iterator[None]:
    """Blocks in it run `run`, and the tool."""
    before, decode.run = decode.run, run
    try:
        with tool():
            yield
    finally:
        decode.run = before


def _as_step(replay: Run) -> Run:
    """So that a replay is a step, as a user's loop declares it."""

    def run() -> None:
        with pertoken.step("decode"):
            replay()

    return run


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


def _stop_ns(decode: _Decode, recording: pertoken.Recording, variant: Variant) -> float:
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
