"""The wheel as people get it: built from the source distribution, repaired, measured, installed.

For each supported Python that is here, the wheel goes into a fresh environment whose PATH holds no
compiler, and has to work there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 1_000_000
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
UNWANTED = ("torch", "transformers", "pandas", "pyarrow", "rich", "click")

pytestmark = [pytest.mark.wheel, pytest.mark.slow]


def _run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(command, text=True, capture_output=True, timeout=1800, **options)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def _find_python(version: str) -> str:
    found = subprocess.run(
        [ROOT / ".ci" / "find_python.sh", version], text=True, capture_output=True, timeout=600
    )
    return found.stdout.strip()


def test_wheels_work_where_there_is_no_compiler(subtests: pytest.Subtests, tmp_path: Path) -> None:
    """Tagged manylinux, at most 1 MB, complete, and usable without a compiler or torch."""
    pythons = {version: _find_python(version) for version in VERSIONS}
    present = [python for python in pythons.values() if python]
    _run(ROOT / ".ci" / "build_wheel.sh", *present, tmp_path / "wheelhouse")
    assert len(list((tmp_path / "wheelhouse").iterdir())) == len(present)
    pins = tmp_path / "pins.txt"
    pins.write_text(
        "".join(
            line
            for name in ("constraints", "run", "dev")
            for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines(True)
            if not line.startswith("-")
        )
    )
    for version, python in pythons.items():
        with subtests.test(version=version):
            if not python:
                pytest.skip(f"no Python {version} with its headers on this machine")
            tag = "cp" + version.replace(".", "")
            (wheel,) = (tmp_path / "wheelhouse").glob(f"*-{tag}-*.whl")
            _check_contents(wheel, tag)
            (tmp_path / tag).mkdir()
            _check_in_a_bare_environment(wheel, python, pins, tmp_path / tag)


def _check_contents(wheel: Path, tag: str) -> None:
    assert re.fullmatch(rf"pertoken-[\w.]+-{tag}-{tag}-manylinux_\w+\.whl", wheel.name)
    assert wheel.stat().st_size <= LIMIT_BYTES
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith("/licenses/LICENSE")]
    assert "pertoken/py.typed" in names
    assert "pertoken/_native.pyi" in names
    assert "pertoken_autostart.pth" in names
    assert not [name for name in names if name.endswith((".a", ".cpp", ".h", ".pyc"))]


def _check_in_a_bare_environment(wheel: Path, python: str, pins: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    _run(python, "-m", "venv", venv)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CC", "CXX")
    }
    environment["PATH"] = str(venv / "bin")
    bare = {"env": environment, "cwd": tmp_path}
    _run(
        venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:",
        "--constraint", pins, wheel, **bare,
    )  # fmt: skip

    code = (
        "import sys, pertoken, pertoken._native as native;"
        f"assert not set({UNWANTED}) & set(sys.modules), sorted(sys.modules);"
        "print(native.build_info()['pertoken'])"
    )
    built = _run(venv / "bin" / "python", "-c", code, **bare).strip()
    assert wheel.name.startswith(f"pertoken-{built}-")

    doctor = json.loads(_run(venv / "bin" / "pertoken", "doctor", "--json", **bare))
    checks = {check["name"]: check for check in doctor["checks"]}
    assert checks["package"]["status"] == "ok", checks["package"]
    assert checks["clock"]["status"] in ("ok", "warning"), checks["clock"]
    assert checks["torch"]["status"] == "absent"
    assert "pertoken[torch]" in checks["torch"]["reason"]
    assert "Python" in _run(venv / "bin" / "pertoken", "doctor", **bare)

    show = "import sys; print('pertoken.autostart' in sys.modules, 'numpy' in sys.modules)"
    assert _run(venv / "bin" / "python", "-c", show, **bare) == "False False\n"
    profiled = {**bare, "env": {**environment, "PERTOKEN_PROFILE": "out"}}
    assert _run(venv / "bin" / "python", "-c", show, **profiled) == "True False\n"
    (tmp_path / "show.py").write_text(show)
    assert _run(venv / "bin" / "pertoken", "run", "show.py", **bare) == "True False\n"
