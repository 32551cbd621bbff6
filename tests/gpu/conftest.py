"""Tests that need a GPU: skipped where there is none, unless PERTOKEN_REQUIRE names `gpu`."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _needs_gpu() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        return
    reason = "torch finds no CUDA device"
    if "gpu" in os.environ.get("PERTOKEN_REQUIRE", "").split(","):
        pytest.fail(f"{reason}, and PERTOKEN_REQUIRE forbids to skip", pytrace=False)
    pytest.skip(reason)
