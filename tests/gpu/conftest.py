"""Tests that need a GPU: skipped with a reason where there is none, mandatory on demand.

``PERTOKEN_REQUIRE=gpu`` makes a missing GPU, or a build without kernels, a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _missing() -> str:
    """Why these tests cannot run here; empty where they can."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "torch finds no NVIDIA GPU"
    from pertoken import _native

    info = _native.build_info()
    if info["cuda_kernels"] == "none":
        return f"pertoken was built without kernels: {info['cuda_reason']}"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    missing = _missing() if ours else ""
    if not missing:
        return
    if "gpu" in os.environ.get("PERTOKEN_REQUIRE", "").split(","):
        pytest.exit(f"PERTOKEN_REQUIRE=gpu, but {missing}", returncode=1)
    for item in ours:
        item.add_marker(pytest.mark.skip(reason=missing))
