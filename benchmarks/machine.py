"""What the benchmarks ran on, without the names of hosts, users or folders."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pertoken
from pertoken import _native


def describe_machine() -> dict[str, Any]:
    """The processor, memory, system and versions, as plain data; None for what is not known."""
    build = _native.build_info()
    clock = _native.clock_info()
    cpuinfo = _read("/proc/cpuinfo")
    return {
        "cpu": cpu_model(),
        "cpu_family": _field(cpuinfo, "cpu family"),
        "cpu_model_number": _field(cpuinfo, "model"),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in (_field(cpuinfo, "flags") or "").split(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": _os_name(),
        "kernel": _kernel_version(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": platform.python_version(),
        "pertoken": pertoken.__version__,
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "numpy": _version("numpy"),
        "compiler": f"{build['compiler']} {build['compiler_version']}",
        "build_type": build["build_type"],
        "clock_source": clock["source"],
        "clock_ticks_per_second": clock["ticks_per_second"],
    }


def cpu_model() -> str:
    """The processor as it calls itself, for example ``AMD EPYC``."""
    return _field(_read("/proc/cpuinfo"), "model name") or platform.machine()


def stolen_ticks() -> tuple[int, int]:
    """Scheduler ticks that the hypervisor gave to others so far, and all ticks."""
    times = [int(ticks) for ticks in _read("/proc/stat").split("\n", 1)[0].split()[1:9]]
    return (times[7], sum(times)) if len(times) == 8 else (0, 0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _kernel_version() -> str:
    """The numbers only: what follows them may name who built it."""
    numbers = re.match(r"[\d.]+", platform.release())
    return f"{platform.system()} {numbers[0].rstrip('.') if numbers else ''}".strip()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
