"""Histogram and moments of a tensor on a GPU, beside a copy of it and what torch and CuPy have.

GPU time is that of the kernels alone, as torch.profiler has it from CUPTI, summed over all kernels
of a call; host time is that of the call with its wait. All of a size run interleaved, in random
order; figures are medians over the rounds. The copy tells what bandwidth there is: it reads and
writes, so a read of its speed would take half of its time. Without a GPU it says so and gives
nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median
from time import perf_counter_ns
from typing import Any

import torch

from pertoken import Histogram, _native
from script import Advance, part, run_script

BINS = 200
DTYPES = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
CALLS = 5
Work = Callable[[], object]

SIZES = {"decode": 32 * 4096, "prefill": 1 << 23, "large": 1 << 26}


def missing() -> str:
    """Why nothing can be measured here; empty where it can."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "no NVIDIA GPU that torch can use"
    kernels = str(_native.build_info()["cuda_kernels"])
    return "pertoken was built without kernels" if kernels == "none" else ""


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Times and read bandwidth for each size, dtype and kind of data."""
    if reason := missing():
        return {"measured": False, "reason": reason}
    rounds = 3 if smoke else 20
    result: dict[str, Any] = {
        "measured": True,
        "gpu": torch.cuda.get_device_name(),
        "rounds": rounds,
        "cases": [],
    }
    cases = [
        (size, dtype, kind)
        for size in SIZES
        for dtype in DTYPES
        for kind in ("normal", "constant", "heavy-tailed")
    ]
    for number, (size, dtype, kind) in enumerate(cases):
        values = SIZES[size] // (16 if smoke else 1)
        tensor = _tensor(kind, values).to(dtype)
        timed = _interleaved(_works(tensor), rounds)
        ours = timed["pertoken"]["gpu_ns"]
        result["cases"].append(
            {
                "size": size,
                "values": values,
                "dtype": str(dtype).removeprefix("torch."),
                "data": kind,
                "timed": timed,
                "read_bytes_per_second": tensor.nbytes * 1e9 / ours,
                "share_of_copy_bandwidth": timed["copy"]["gpu_ns"] / 2 / ours,
            }
        )
        part(advance, number, len(cases))(1.0)
    return result


def _tensor(kind: str, values: int) -> torch.Tensor:
    if kind == "constant":
        return torch.full((values,), 1.25, device="cuda")
    normal = torch.randn(values, device="cuda")
    return normal if kind == "normal" else normal / torch.randn_like(normal).abs().clamp_min(1e-3)


def _works(tensor: torch.Tensor) -> dict[str, Work]:
    works: dict[str, Work] = {
        "pertoken": lambda: Histogram.from_values(tensor),
        "copy": tensor.clone,
    }
    if tensor.dtype.itemsize == 1:
        return works
    works["torch"] = lambda: (
        torch.histc(tensor.float(), BINS),
        torch.aminmax(tensor),
        torch.mean(tensor),
        torch.std(tensor),
        torch.isnan(tensor).any(),
    )
    try:
        import cupy
    except ImportError:
        return works
    if tensor.dtype != torch.bfloat16:
        array = cupy.from_dlpack(tensor)
        works["cupy.histogram"] = lambda: cupy.histogram(array, BINS)
    return works


def _interleaved(works: dict[str, Work], rounds: int) -> dict[str, dict[str, float]]:
    gpu_ns: dict[str, list[float]] = {name: [] for name in works}
    call_ns: dict[str, list[float]] = {name: [] for name in works}
    order = random.Random(0)
    for work in works.values():
        work()
    torch.cuda.synchronize()
    for _ in range(rounds):
        for name in order.sample(list(works), len(works)):
            start = perf_counter_ns()
            works[name]()
            torch.cuda.synchronize()
            call_ns[name].append(perf_counter_ns() - start)
            gpu_ns[name].append(_kernel_ns(works[name]))
    return {
        name: {"gpu_ns": median(gpu_ns[name]), "call_ns": median(call_ns[name])} for name in works
    }


def _kernel_ns(work: Work) -> float:
    """Nanoseconds that the kernels and copies of a call take on the GPU: the mean of a few."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(CALLS):
            work()
        torch.cuda.synchronize()
    microseconds = sum(event.self_device_time_total for event in profiler.key_averages())
    return float(microseconds) * 1e3 / CALLS


if __name__ == "__main__":
    run_script("tensor statistics on a GPU", measure)
