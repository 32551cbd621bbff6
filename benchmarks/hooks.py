"""What pertoken is compared with: hooks in Python on every module, and torch's own profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter_ns
from typing import Any

import torch


@contextmanager
def no_op_hooks(model: torch.nn.Module) -> Iterator[None]:
    """A hook before and a hook after every module, neither of which does anything."""

    def before(module: torch.nn.Module, args: Any) -> None:
        return None

    def after(module: torch.nn.Module, args: Any, output: Any) -> None:
        return None

    with _hooks(model, lambda name: (before, after)):
        yield


@contextmanager
def timing_hooks(model: torch.nn.Module) -> Iterator[list[tuple[str, int, int]]]:
    """Hooks that note (name, start, end) of every call, as one would write them by hand."""
    spans: list[tuple[str, int, int]] = []
    starts: list[int] = []

    def make(name: str) -> tuple[Any, Any]:
        def before(module: torch.nn.Module, args: Any) -> None:
            starts.append(perf_counter_ns())

        def after(module: torch.nn.Module, args: Any, output: Any) -> None:
            spans.append((name, starts.pop(), perf_counter_ns()))

        return before, after

    with _hooks(model, make):
        yield spans


def torch_profiler() -> AbstractContextManager[Any]:
    """torch.profiler with CPU activity and nothing else on."""
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


def calls_a_step(model: torch.nn.Module, run: Callable[[], object], steps: int) -> int:
    """How many modules are called in one of the `steps` steps that `run` takes."""
    with timing_hooks(model) as spans:
        run()
    calls, rest = divmod(len(spans), steps)
    if rest:
        raise RuntimeError(f"{len(spans)} calls in {steps} steps: steps differ in their modules")
    return calls


@contextmanager
def _hooks(model: torch.nn.Module, make: Callable[[str], tuple[Any, Any]]) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        before, after = make(name)
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
