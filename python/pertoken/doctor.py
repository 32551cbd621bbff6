"""What is here and how it was built: `diagnose()`, shown by `pertoken doctor`.

Every check answers, none raises: what is missing or broken is a status with a reason. Libraries of
the GPU are opened by name and asked for their version only; no CUDA context is made.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "absent"]


@dataclass(frozen=True)
class Check:
    """One thing looked for.

    Attributes:
        name: what was looked for.
        status: `ok`, `warning` (there, but not as it should be) or `absent`.
        detail: what was found; empty when nothing was.
        reason: why it is absent or what is wrong; empty when the status is `ok`.
    """

    name: str
    status: Status
    detail: str
    reason: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The outcome of every check, in the order in which they are shown."""

    checks: tuple[Check, ...]

    def __getitem__(self, name: str) -> Check:
        """The check of that name; KeyError when there is none."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def to_dict(self) -> dict[str, list[dict[str, str]]]:
        """Plain data, fit for JSON: `{"checks": [{name, status, detail, reason}, ...]}`."""
        return {"checks": [asdict(check) for check in self.checks]}


def diagnose() -> Diagnosis:
    """Look at the package, the machine and the libraries that pertoken can use.

    Imports torch where it is installed, which takes seconds. Never raises.

    Returns:
        A `Diagnosis` with the checks `package`, `compiler`, `CUDA build`, `clock`, `Python`,
        `torch`, `transformers`, `CUDA driver`, `CUPTI` and `NVML`.
    """
    checks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("package", _check_package),
        ("compiler", _check_compiler),
        ("CUDA build", _check_cuda_build),
        ("clock", _check_clock),
        ("Python", _check_python),
        ("torch", _check_torch),
        ("transformers", _check_transformers),
        ("CUDA driver", _check_cuda_driver),
        ("CUPTI", _check_cupti),
        ("NVML", _check_nvml),
    )
    return Diagnosis(tuple(_guarded(name, check) for name, check in checks))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        return Check(name, "warning", "", f"the check failed: {_describe(error)}")


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _native() -> Any:
    from pertoken import _native

    return _native


def _build_info() -> dict[str, Any]:
    info: dict[str, Any] = _native().build_info()
    return info


def _check_package() -> Check:
    try:
        installed = importlib.metadata.version("pertoken")
    except importlib.metadata.PackageNotFoundError:
        installed = ""
    try:
        info = _build_info()
    except ImportError as error:
        return Check(
            "package",
            "absent",
            f"pertoken {installed}".strip(),
            f"the native module cannot be imported: {_describe(error)}",
        )
    built = info["pertoken"]
    detail = f"pertoken {built}, {info['build_type']} build for {info['system']} {info['arch']}"
    if info["sanitizers"]:
        return Check(
            "package",
            "warning",
            detail,
            f"built with sanitizers ({info['sanitizers']}): its timings mean nothing",
        )
    if info["build_type"] not in ("Release", "RelWithDebInfo", "MinSizeRel"):
        return Check("package", "warning", detail, "not optimised: its timings mean little")
    if installed and installed != built:
        return Check(
            "package",
            "warning",
            detail,
            f"the installed metadata say {installed}; install the package again",
        )
    return Check("package", "ok", detail)


def _check_compiler() -> Check:
    try:
        info = _build_info()
    except ImportError as error:
        return Check("compiler", "absent", "", f"unknown without the native module: {error}")
    return Check(
        "compiler",
        "ok",
        f"{info['compiler']} {info['compiler_version']}, C++ {info['cxx_standard']}, "
        f"pybind11 {info['pybind11']}, CMake {info['cmake']}, for Python {info['python']}",
    )


def _check_cuda_build() -> Check:
    try:
        info = _build_info()
    except ImportError as error:
        return Check("CUDA build", "absent", "", f"unknown without the native module: {error}")
    kernels = f"PERTOKEN_CUDA={info['cuda_setting']}; kernels: {info['cuda_kernels']}"
    if info["cuda_reason"]:
        return Check("CUDA build", "absent", kernels, info["cuda_reason"])
    return Check("CUDA build", "ok", f"nvcc {info['cuda_compiler']}; {kernels}")


def _check_clock() -> Check:
    try:
        info = _native().clock_info()
    except ImportError as error:
        return Check("clock", "absent", "", f"unknown without the native module: {error}")
    detail = f"{info['source']}, {info['ticks_per_second']:.6g} ticks a second"
    if info["source"] != "tsc":
        return Check("clock", "warning", detail, f"the slower clock: {info['reason']}")
    return Check("clock", "ok", f"{detail}, {info['reason']}")


def _check_python() -> Check:
    detail = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    if platform.python_implementation() != "CPython":
        return Check("Python", "warning", detail, "only CPython is tested")
    return Check("Python", "ok", detail)


def _check_torch() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("torch", "absent", "", "not installed: pip install 'pertoken[torch]'")
    try:
        import torch
    except Exception as error:
        return Check("torch", "warning", "", f"installed, but not importable: {_describe(error)}")
    cuda = getattr(torch.version, "cuda", None)
    hip = getattr(torch.version, "hip", None)
    flavour = f"built for CUDA {cuda}" if cuda else f"built for ROCm {hip}" if hip else "CPU build"
    detail = f"torch {torch.__version__}, {flavour}"
    if not _calls_the_compiled_slot(torch):
        return Check(
            "torch",
            "warning",
            detail,
            "nn.Module.__call__ does not read _compiled_call_impl: modules are timed through "
            "their forward instead",
        )
    return Check("torch", "ok", f"{detail}, modules have the _compiled_call_impl slot")


def _calls_the_compiled_slot(torch: Any) -> bool:
    """Whether calling a module calls what its `_compiled_call_impl` slot holds."""
    module = torch.nn.Identity()
    module.__dict__["_compiled_call_impl"] = lambda *args: "through the slot"
    return bool(module(None) == "through the slot")


def _check_transformers() -> Check:
    if importlib.util.find_spec("transformers") is None:
        return Check(
            "transformers", "absent", "", "not installed: pip install 'pertoken[transformers]'"
        )
    version = importlib.metadata.version("transformers")
    return Check("transformers", "ok", f"transformers {version}")


def _open_library(names: Iterable[str]) -> tuple[ctypes.CDLL | None, str]:
    """The first of `names` that opens, with its name; else None and why the last one did not."""
    reason = "no name to look for"
    for name in names:
        try:
            return ctypes.CDLL(name), name
        except OSError as error:
            reason = " ".join(str(error).split())
    return None, reason


def _decode_cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _check_cuda_driver() -> Check:
    library, name = _open_library(["libcuda.so.1"])
    if library is None:
        return Check("CUDA driver", "absent", "", f"no NVIDIA driver: {name}")
    version = ctypes.c_int()
    status = library.cuDriverGetVersion(ctypes.byref(version))
    if status != 0:
        reason = f"cuDriverGetVersion answers {status}"
        return Check("CUDA driver", "warning", name, reason)
    detail = f"{name}, supports CUDA up to {_decode_cuda_version(version.value)}"
    return Check("CUDA driver", "ok", detail)


def _cupti_candidates() -> list[str]:
    """Names and paths of CUPTI: the loader's own, a toolkit's, and those of PyPI's packages."""
    found = ["libcupti.so.13", "libcupti.so.12", "libcupti.so"]
    roots = [os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    for root in filter(None, roots):
        for folder in ("extras/CUPTI/lib64", "lib64"):
            found += sorted(glob.glob(os.path.join(root, folder, "libcupti.so*")))
    for root in sys.path:
        found += sorted(glob.glob(os.path.join(root, "nvidia", "*", "lib", "libcupti.so*")))
    return found


def _check_cupti() -> Check:
    library, name = _open_library(_cupti_candidates())
    if library is None:
        return Check("CUPTI", "absent", "", f"no libcupti of CUDA 12 or 13: {name}")
    version = ctypes.c_uint32()
    status = library.cuptiGetVersion(ctypes.byref(version))
    if status != 0:
        return Check("CUPTI", "warning", name, f"cuptiGetVersion answers {status}")
    return Check("CUPTI", "ok", f"{name}, API version {version.value}")


def _check_nvml() -> Check:
    library, name = _open_library(["libnvidia-ml.so.1"])
    if library is None:
        return Check("NVML", "absent", "", f"no NVIDIA driver: {name}")
    library.nvmlErrorString.restype = ctypes.c_char_p
    status = library.nvmlInit_v2()
    if status != 0:
        reason = (library.nvmlErrorString(status) or b"").decode("utf-8", "replace")
        return Check("NVML", "warning", name, f"nvmlInit answers {status}: {reason}")
    try:
        return Check("NVML", "ok", _describe_devices(library))
    finally:
        library.nvmlShutdown()


def _describe_devices(library: ctypes.CDLL) -> str:
    text = ctypes.create_string_buffer(96)
    driver = "unknown"
    if library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text))) == 0:
        driver = text.value.decode("utf-8", "replace")
    count = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    names = []
    for index in range(count.value):
        device = ctypes.c_void_p()
        if (
            library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0
            and library.nvmlDeviceGetName(device, text, ctypes.c_uint(len(text))) == 0
        ):
            names.append(text.value.decode("utf-8", "replace"))
        else:
            names.append("not accessible")
    devices = ", ".join(names) if names else "none"
    return f"driver {driver}, GPUs: {devices}"
