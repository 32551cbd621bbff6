"""The GPU that the benchmarks run on, where there is one."""

from __future__ import annotations

from typing import Any

import torch

NO_GPU = "no NVIDIA GPU that torch can use"


def has_gpu() -> bool:
    """Whether torch can use an NVIDIA GPU."""
    return torch.cuda.is_available() and torch.version.cuda is not None


def wait_for_gpu() -> None:
    """Waits for what was enqueued, where there is a GPU."""
    if has_gpu():
        torch.cuda.synchronize()


def describe_gpu() -> dict[str, Any]:
    """What it is, as plain data; its name is "none" where there is none."""
    if not has_gpu():
        return {"name": "none"}
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "memory_bytes": found.total_memory,
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
    }
