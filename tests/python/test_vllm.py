"""The adapter of vLLM: `tests/vllm`, run in the environment that has vLLM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from requirements_check import require

FOLDER = Path(__file__).parents[1] / "vllm"


@pytest.mark.slow
def test_the_adapter_of_vllm_in_its_own_engine() -> None:
    python = require("vllm")
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    run = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", FOLDER],
        capture_output=True,
        text=True,
        timeout=1800,
        env=environment,
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-5_000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout
