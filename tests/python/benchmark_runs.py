"""Runs benchmarks at their smallest size, and imports their modules, for the tests of them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RUN = """
import importlib, json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from script import rounded
parts = {
    name: importlib.import_module(name).measure(True, lambda share: None) for name in sys.argv[2:]
}
Path(sys.argv[1]).write_text(json.dumps(rounded(parts)))
"""


def smoke_run(folder: Path, parts: Sequence[str]) -> dict[str, Any]:
    """What benchmarks give without a GPU, as it is written to the file of results.

    In one process of its own.
    """
    for package in ("transformers", "viztracer", "perfetto"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    output = folder / "parts.json"
    path = os.pathsep.join([str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(output), *parts],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(output.read_text()))


@contextmanager
def benchmark_modules() -> Iterator[Callable[[str], Any]]:
    """Imports modules of the benchmarks, which are scripts and not part of the package."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and name in {
                path.stem for path in BENCHMARKS.glob("*.py")
            }:
                del sys.modules[name]


def newest_results(report: ModuleType) -> dict[str, Any]:
    """Those that the page is made of."""
    return dict(json.loads(report.newest_results().read_text()))
