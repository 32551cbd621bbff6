"""How long calls take on a GPU, side by side: their kernels alone, and the call with its wait.

Kernels are timed by torch.profiler, which has it from CUPTI, and summed over a call, copies
included. All run interleaved, in random order. On the processor, where smoke runs go without a GPU,
a call counts as its own kernel: that shows that a benchmark works, and its times are no figures.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns

import torch
from torch._C._autograd import DeviceType

from gpu_device import NO_GPU, has_gpu, wait_for_gpu
from paired import median_interval
from pertoken import _native

CALLS = 5  # that are profiled at once
Work = Callable[[], object]


@dataclass
class Times:
    """Those of one work, in the order of the rounds."""

    call_ns: list[float] = field(default_factory=list)
    kernels_ns: list[dict[str, float]] = field(default_factory=list)  # of a call, by name

    @property
    def gpu_ns(self) -> list[float]:
        """The sum over the kernels."""
        return [sum(kernels.values()) for kernels in self.kernels_ns]

    def estimates(self, ours: Times) -> dict[str, dict[str, float]]:
        """``gpu_ns``, ``call_ns``, and ``times_slower`` on the GPU than `ours`, with intervals."""
        return {
            "gpu_ns": median_interval(self.gpu_ns),
            "call_ns": median_interval(self.call_ns),
            "times_slower": ratio(self.gpu_ns, ours.gpu_ns),
        }


def ratio(values: list[float], others: list[float]) -> dict[str, float]:
    """The quotients of two works' figures, round by round, as `median_interval` gives them."""
    return median_interval(value / other for value, other in zip(values, others, strict=True))


def missing() -> str:
    """Why kernels cannot be timed here; empty where they can."""
    if not has_gpu():
        return NO_GPU
    if _native.build_info()["cuda_kernels"] == "none":
        return "pertoken was built without kernels"
    seen = _kernels_ns(lambda: torch.ones(8, device="cuda"))
    return "" if sum(seen.values()) else "torch.profiler sees no kernels: CUPTI may be forbidden"


def interleaved(
    works: dict[str, Work], rounds: int, *, settle: Callable[[], object] | None = None
) -> dict[str, Times]:
    """The times of every work; on the GPU where there is one.

    `settle` is called before each, and not timed.
    """
    times = {name: Times() for name in works}
    order = random.Random(0)
    for number in range(1 + rounds):
        for name in order.sample(list(works), len(works)):
            if settle is not None:
                settle()
            start_ns = perf_counter_ns()
            works[name]()
            wait_for_gpu()
            call_ns = perf_counter_ns() - start_ns
            kernels_ns = _kernels_ns(works[name]) if has_gpu() else {"call": float(call_ns)}
            if not sum(kernels_ns.values()):
                raise RuntimeError(f"no kernel of {name} was seen")
            if number > 0:  # the first round warms up
                times[name].call_ns.append(call_ns)
                times[name].kernels_ns.append(kernels_ns)
    return times


def _kernels_ns(work: Work) -> dict[str, float]:
    """Nanoseconds that each kernel or copy of a call takes on the GPU: the mean of a few calls."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(CALLS):
            work()
        wait_for_gpu()
    return {
        event.key: event.self_device_time_total * 1e3 / CALLS
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CUDA
    }
