"""A decode loop on a GPU whose step is one forward and the wait for it, eager or as a CUDA graph.

Of Llamas of about 1B and 8B parameters in bfloat16, with random weights and a static cache, at
batch 1 and 32. Without a GPU it is a toy on the processor, whose "graph" is the forward itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter_ns
from typing import Any

import torch
from transformers import StaticCache

import pertoken
from gpu_device import NO_GPU, describe_gpu, has_gpu, wait_for_gpu
from gpu_llama import SHAPES, TOY, Shape, gpu_llama
from script import Advance, part

WARM_UP_STEPS = 4
MODES = ("eager", "graph")
Run = Callable[[], object]
Tool = Callable[[], AbstractContextManager[object]]


class Decode:
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
        """One step."""
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
        # Not the bound method, which would be what recordings have put in its place by now.
        return lambda: graph.replay()

    def block(self) -> list[int]:
        """Decodes from an empty cache; the nanoseconds of each step after the warm-up."""
        self.cache.reset()
        durations_ns = []
        for _ in range(self.steps):
            start_ns = perf_counter_ns()
            self.run()
            wait_for_gpu()
            durations_ns.append(perf_counter_ns() - start_ns)
        return durations_ns[WARM_UP_STEPS:]


def measure_cases(
    measure: Callable[[int, Decode, str, Advance], dict[str, Any]],
    *,
    smoke: bool,
    advance: Advance,
    **facts: Any,
) -> dict[str, Any]:
    """The result of a benchmark, without a GPU that of its smoke run alone.

    Args:
        measure: gives what it finds in so many rounds for each shape, batch and mode.
        smoke: a toy model and few rounds, on the processor if need be.
        advance: told how far it has come.
        facts: of the benchmark, for the result.
    """
    if not has_gpu() and not smoke:
        return {"measured": False, "reason": NO_GPU}
    rounds, steps = (3, 4) if smoke else (20, 32)
    device = "cuda" if has_gpu() else "cpu"
    cases = [
        (shape, batch, mode)
        for shape in ((TOY,) if smoke else SHAPES)
        for batch in ((1,) if smoke else (1, 32))
        for mode in MODES
    ]
    model: Any = None
    held, found = "", []
    for number, (shape, batch, mode) in enumerate(cases):
        if held != shape.name:
            model = None  # before the next one takes its memory
            model, held = gpu_llama(shape, device), shape.name
        with torch.inference_mode():
            decode = Decode(model, shape, batch, WARM_UP_STEPS + steps, device)
            done = measure(rounds, decode, mode, part(advance, number, len(cases)))
        found.append({"shape": shape.name, "batch": batch, "mode": mode, **done})
        del decode
    return {
        "measured": has_gpu() and not smoke,
        "gpu": describe_gpu(),
        "rounds": rounds,
        "steps_a_block": steps,
        **facts,
        "cases": found,
    }


@contextmanager
def running(decode: Decode, run: Run, tool: Tool = nullcontext) -> Iterator[None]:
    """Blocks in it run `run`, and the tool."""
    before, decode.run = decode.run, run
    try:
        with tool():
            yield
    finally:
        decode.run = before


def as_step(replay: Run) -> Run:
    """So that a replay is a step, as a user's loop declares it."""

    def run() -> None:
        with pertoken.step("decode"):
            replay()

    return run
