"""PERTOKEN_CUDA: AUTO builds without a compiler and says why, ON fails, OFF never looks.

Each test configures the real CMake project, without its Python module, against a compiler that is
missing, broken or pretended.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on PATH"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on PATH"),
]


def _configure(build: Path, setting: str, nvcc: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            "cmake", "-S", ROOT, "-B", build, f"-DPERTOKEN_CUDA={setting}",
            "-DPERTOKEN_BUILD_MODULE=OFF", "-DPERTOKEN_LTO=OFF",
        ],
        env=os.environ | {"CUDACXX": str(nvcc)},
        text=True,
        capture_output=True,
        timeout=300,
    )  # fmt: skip


def _write_compiler(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def _unwrapped(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def missing(tmp_path: Path) -> Path:
    return tmp_path / "absent" / "nvcc"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return _write_compiler(tmp_path / "nvcc", "echo 'no host compiler' >&2; exit 7")


def test_auto_builds_without_a_compiler_and_says_so(tmp_path: Path, missing: Path) -> None:
    done = _configure(tmp_path / "build", "AUTO", missing)
    assert done.returncode == 0, done.stderr
    assert "building without a CUDA compiler" in done.stdout
    assert str(missing) in _unwrapped(done.stdout)


def test_auto_builds_with_a_broken_compiler_and_quotes_it(tmp_path: Path, broken: Path) -> None:
    done = _configure(tmp_path / "build", "AUTO", broken)
    assert done.returncode == 0, done.stderr
    assert "cannot compile a kernel: exit status 7: no host compiler" in _unwrapped(done.stdout)


def test_auto_takes_a_compiler_that_compiles(tmp_path: Path) -> None:
    nvcc = _write_compiler(tmp_path / "nvcc", "echo 'Cuda compilation tools, V99.1.2'")
    done = _configure(tmp_path / "build", "AUTO", nvcc)
    assert done.returncode == 0, done.stderr
    assert f"CUDA compiler {nvcc} (99.1.2)" in _unwrapped(done.stdout)


def test_on_fails_without_a_compiler(tmp_path: Path, missing: Path) -> None:
    done = _configure(tmp_path / "build", "ON", missing)
    assert done.returncode != 0
    assert "PERTOKEN_CUDA=ON, but CUDACXX names" in _unwrapped(done.stderr)


def test_on_fails_with_a_broken_compiler(tmp_path: Path, broken: Path) -> None:
    done = _configure(tmp_path / "build", "ON", broken)
    assert done.returncode != 0
    assert "no host compiler" in _unwrapped(done.stderr)


def test_off_never_runs_the_compiler(tmp_path: Path) -> None:
    trace = tmp_path / "called"
    nvcc = _write_compiler(tmp_path / "nvcc", f"touch '{trace}'")
    assert _configure(tmp_path / "on", "ON", nvcc).returncode == 0
    assert trace.exists(), "the pretended compiler is called when it is asked for"
    trace.unlink()
    assert _configure(tmp_path / "off", "OFF", nvcc).returncode == 0
    assert not trace.exists()


def test_any_other_setting_is_refused(tmp_path: Path, missing: Path) -> None:
    done = _configure(tmp_path / "build", "MAYBE", missing)
    assert done.returncode != 0
    assert "must be AUTO, ON or OFF" in _unwrapped(done.stderr)
