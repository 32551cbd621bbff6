"""`pertoken doctor`: every check answers with a status and, unless all is well, a reason."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pertoken import doctor
from pertoken.doctor import Check, diagnose

NAMES = [
    "package", "compiler", "CUDA build", "clock", "Python", "torch", "transformers",
    "CUDA driver", "CUPTI", "NVML",
]  # fmt: skip


def test_every_check_has_a_status_and_a_reason_unless_it_is_ok() -> None:
    diagnosis = diagnose()
    assert [check.name for check in diagnosis.checks] == NAMES
    for check in diagnosis.checks:
        assert check.status in ("ok", "warning", "absent")
        assert bool(check.reason) == (check.status != "ok"), check
        assert check.detail or check.reason
        assert "\n" not in check.detail + check.reason


def test_the_package_says_how_it_was_built() -> None:
    from pertoken import _native

    info = _native.build_info()
    diagnosis = diagnose()
    assert info["pertoken"] in diagnosis["package"].detail
    assert info["compiler_version"] in diagnosis["compiler"].detail
    assert f"PERTOKEN_CUDA={info['cuda_setting']}" in diagnosis["CUDA build"].detail
    assert diagnosis["CUDA build"].reason == info["cuda_reason"]


def test_a_check_that_breaks_is_a_warning_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def explode() -> Check:
        raise RuntimeError("planted")

    monkeypatch.setattr(doctor, "_check_clock", explode)
    diagnosis = diagnose()
    assert [check.name for check in diagnosis.checks] == NAMES
    assert diagnosis["clock"].status == "warning"
    assert "RuntimeError: planted" in diagnosis["clock"].reason


def test_without_the_native_module_it_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> object:
        raise ImportError("planted: no native module")

    monkeypatch.setattr(doctor, "_native", missing)
    diagnosis = diagnose()
    for name in ("package", "compiler", "CUDA build", "clock"):
        assert diagnosis[name].status == "absent"
        assert "planted" in diagnosis[name].reason


def test_a_clock_other_than_the_counter_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    class Native:
        @staticmethod
        def clock_info() -> dict[str, object]:
            return {"source": "steady", "ticks_per_second": 1e9, "reason": "planted"}

    assert diagnose()["clock"].status in ("ok", "warning")
    monkeypatch.setattr(doctor, "_native", lambda: Native)
    check = doctor._check_clock()
    assert (check.status, check.detail) == ("warning", "steady, 1e+09 ticks a second")
    assert "planted" in check.reason


def test_torch_whose_modules_have_no_slot_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(doctor, "_calls_the_compiled_slot", lambda torch: False)
    check = diagnose()["torch"]
    assert check.status == "warning"
    assert "_compiled_call_impl" in check.reason


def test_the_installed_torch_has_the_slot() -> None:
    pytest.importorskip("torch")
    assert diagnose()["torch"].status == "ok"


def test_absent_optional_libraries_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    diagnosis = diagnose()
    for name in ("torch", "transformers"):
        assert diagnosis[name].status == "absent"
        assert f"pertoken[{name}]" in diagnosis[name].reason


def _compile_library(folder: Path, name: str, source: str) -> Path:
    (folder / "fake.c").write_text(source)
    path = folder / name
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, folder / "fake.c"], check=True)
    return path


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for the pretended libraries")
def test_gpu_libraries_are_read_through_their_own_interfaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions, devices and failures come out of (pretended) drivers as they answer them."""
    source = """
        #include <string.h>
        int cuDriverGetVersion(int *v) { *v = 13020; return 0; }
        int cuptiGetVersion(unsigned *v) { *v = 28; return 0; }
        const char *nvmlErrorString(int status) { return "Driver Not Loaded"; }
        int nvmlInit_v2(void) { return INIT; }
        int nvmlShutdown(void) { return 0; }
        int nvmlSystemGetDriverVersion(char *t, unsigned n) { strncpy(t, "580.1", n); return 0; }
        int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
        int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = 0; return i == 1; }
        int nvmlDeviceGetName(void *d, char *t, unsigned n) { strncpy(t, "Fake GPU", n); return 0; }
    """
    for init, name in (("0", "good.so"), ("9", "bad.so")):
        _compile_library(tmp_path, name, source.replace("INIT", init))

    def use(name: str) -> None:
        path = str(tmp_path / name)
        monkeypatch.setattr(doctor, "_open_library", lambda names: (ctypes.CDLL(path), name))

    use("good.so")
    diagnosis = diagnose()
    assert "CUDA up to 13.2" in diagnosis["CUDA driver"].detail
    assert "API version 28" in diagnosis["CUPTI"].detail
    assert diagnosis["NVML"].detail == "driver 580.1, GPUs: Fake GPU, not accessible"
    use("bad.so")
    nvml = diagnose()["NVML"]
    assert (nvml.status, nvml.reason) == ("warning", "nvmlInit answers 9: Driver Not Loaded")


def test_a_library_that_lacks_a_function_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_open_library", lambda names: (ctypes.CDLL("libm.so.6"), "libm"))
    diagnosis = diagnose()
    for name in ("CUDA driver", "CUPTI", "NVML"):
        assert diagnosis[name].status == "warning"
        assert "the check failed" in diagnosis[name].reason


def test_the_command_prints_one_line_a_check_and_plain_json() -> None:
    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "pertoken", "doctor", *arguments],
            check=True,
            text=True,
            capture_output=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ).stdout

    lines = run().splitlines()
    assert len(lines) == len(NAMES)
    for line, name in zip(lines, NAMES, strict=True):
        assert line.split()[0] in ("ok", "warning", "absent")
        assert f" {name} " in line
    checks = json.loads(run("--json"))["checks"]
    assert [check["name"] for check in checks] == NAMES
    assert all(set(check) == {"name", "status", "detail", "reason"} for check in checks)
