"""Histogram and moments of a tensor on a GPU, beside a copy of it and what torch and CuPy have.

Times are those of `kernel_times.py`, and medians over the rounds. The copy tells what bandwidth
there is: it reads and writes, so a read of its speed would take half of its time.

Without a GPU only the smoke run does anything: small tensors on the processor, where numpy stands
for CuPy, show that the benchmark works. Its times are no figures.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from gpu_device import describe_gpu
from kernel_times import Work, interleaved, missing, ratio
from paired import median_interval
from pertoken import Histogram
from script import Advance, part, run_script

BINS = 200
DTYPES = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
SIZES = {"decode": 32 * 4096, "prefill": 1 << 23, "large": 1 << 26}
SMOKE_DIVISOR = 1024


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Times and read bandwidth for each size, dtype and kind of data."""
    reason = missing()
    if reason and not smoke:
        return {"measured": False, "reason": reason}
    device = "cpu" if reason else "cuda"
    rounds = 3 if smoke else 20
    arrays = array_library(device)
    result: dict[str, Any] = {
        "measured": not reason and not smoke,
        "gpu": describe_gpu(),
        "rounds": rounds,
        "arrays": None if arrays is None else f"{arrays.__name__} {arrays.__version__}",
        "cases": [],
    }
    cases = [
        (size, dtype, kind)
        for size in SIZES
        for dtype in DTYPES
        for kind in ("normal", "constant", "heavy-tailed")
    ]
    for number, (size, dtype, kind) in enumerate(cases):
        values = SIZES[size] // (SMOKE_DIVISOR if smoke else 1)
        tensor = _tensor(kind, values, device).to(dtype)
        times = interleaved(works(tensor, arrays), rounds)
        ours = times["pertoken"]
        read_rates = [tensor.nbytes * 1e9 / gpu_ns for gpu_ns in ours.gpu_ns]
        half_copies = [copy_ns / 2 for copy_ns in times["copy"].gpu_ns]
        result["cases"].append(
            {
                "size": size,
                "values": values,
                "dtype": str(dtype).removeprefix("torch."),
                "data": kind,
                "timed": {name: of.estimates(ours) for name, of in times.items()},
                "read_bytes_per_second": median_interval(read_rates),
                "share_of_copy_bandwidth": ratio(half_copies, ours.gpu_ns),
            }
        )
        part(advance, number, len(cases))(1.0)
    return result


def array_library(device: str) -> Any | None:
    """CuPy, where it can be imported; on the processor numpy, which has the same functions."""
    if device == "cpu":
        return np
    try:
        return importlib.import_module("cupy")
    except ImportError:
        return None


def works(tensor: torch.Tensor, arrays: Any | None) -> dict[str, Work]:
    """What counts the tensor, copies it, or counts it in equal bins, by name."""
    found: dict[str, Work] = {
        "pertoken": lambda: Histogram.from_values(tensor),
        "copy": tensor.clone,
    }
    if tensor.dtype.itemsize == 1:
        return found
    found["torch"] = lambda: (
        torch.histc(tensor.float(), BINS),
        torch.aminmax(tensor),
        torch.mean(tensor),
        torch.std(tensor),
        torch.isnan(tensor).any(),
    )
    if arrays is not None and tensor.dtype != torch.bfloat16:  # which neither library knows
        array = arrays.from_dlpack(tensor)
        found[f"{arrays.__name__}.histogram"] = lambda: arrays.histogram(array, BINS)
    return found


def _tensor(kind: str, values: int, device: str) -> torch.Tensor:
    if kind == "constant":
        return torch.full((values,), 1.25, device=device)
    normal = torch.randn(values, device=device)
    return normal if kind == "normal" else normal / torch.randn_like(normal).abs().clamp_min(1e-3)


if __name__ == "__main__":
    run_script("tensor statistics on a GPU", measure)
