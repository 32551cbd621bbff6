"""The kernels for GPUs: in the build with nvcc, absent with a reason without it.

And what a tensor on a GPU meets in either case on a machine that has no GPU. Nothing runs on a GPU
here: `tests/gpu` does that. The kernels' arithmetic and the host's side of them are tested in C++,
over a fake driver.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

import pertoken
from pertoken import Histogram, _native
from pertoken.doctor import diagnose
from pertoken.tensor_memory import memory_of

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "cuda" / "kernels"
ENTRIES = {f"pertoken_stats_{name}" for name in ("float32", "float16", "bfloat16", "float8")}
FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)
INFO = _native.build_info()
HAS_DRIVER = os.path.exists("/dev/nvidiactl")

with_kernels = pytest.mark.skipif(
    INFO["cuda_kernels"] == "none", reason=f"built without kernels: {INFO['cuda_reason']}"
)


def _nvcc() -> str:
    found = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not os.access(found, os.X_OK):
        pytest.skip("no nvcc")
    return found


def _functions(elf: bytes) -> set[str]:
    """Names of the functions that a 64-bit little-endian ELF file defines."""
    (sections_at,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", elf, sections_at + i * size) for i in range(count)
    ]
    names: set[str] = set()
    for _, kind, _, _, at, length, link, _, _, entry in sections:
        if kind != 2:  # a table of symbols
            continue
        strings = sections[link][4]
        for i in range(length // entry):
            name, info, _, section, _, _ = struct.unpack_from("<IBBHQQ", elf, at + i * entry)
            if info & 15 == 2 and section != 0:
                start = strings + name
                names.add(elf[start : elf.index(b"\0", start)].decode())
    return names


def test_the_build_has_kernels_exactly_if_nvcc_worked() -> None:
    assert (INFO["cuda_kernels"] == "none") == bool(INFO["cuda_reason"])
    embedded = FATBIN_MAGIC in Path(_native.__file__).read_bytes()
    assert embedded == (INFO["cuda_kernels"] != "none")


@with_kernels
def test_the_build_names_the_generations_it_has_code_for() -> None:
    assert "sm_90" in INFO["cuda_kernels"]
    assert "PTX of compute_" in INFO["cuda_kernels"]
    assert INFO["cuda_kernels"] in diagnose()["CUDA build"].detail


@pytest.mark.parametrize("source", sorted(path.name for path in KERNELS.glob("*.cu")))
def test_every_kernel_compiles_and_keeps_its_values_in_registers(
    source: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            _nvcc(), "-std=c++20", "-cubin", "-arch=sm_90", "-Xptxas", "-v,-warn-spills",
            "-I", ROOT / "csrc", KERNELS / source, "-o", tmp_path / "kernels.cubin",
        ],
        text=True,
        capture_output=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stderr
    assert "spill" in said, "ptxas tells of every function"
    assert said.count(" 0 bytes stack frame, 0 bytes spill stores") == said.count("spill stores")
    entries = _functions((tmp_path / "kernels.cubin").read_bytes())
    if source == "gpu_stats.cu":
        assert entries == ENTRIES
    if source == "gpu_logits.cu":
        shared = {name for name in entries if name.startswith("$")}  # what they call
        assert entries - shared == {"pertoken_read_logits", "pertoken_tell_logits"}
    if source == "graph_stamp.cu":
        assert entries == {"pertoken_graph_stamp"}


class CudaArray:
    """What CuPy's arrays say of themselves."""

    def __init__(self, device: int = 2, **interface: Any) -> None:
        self.device = device
        self.__cuda_array_interface__ = {
            "shape": (4, 3), "typestr": "<f2", "data": (0x7000, False), "version": 3,
        } | interface  # fmt: skip

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 1


@with_kernels
def test_an_array_on_a_gpu_is_described_as_it_lies() -> None:
    memory = memory_of(CudaArray(stream=77))
    assert (memory.address, memory.shape, memory.strides_bytes) == (0x7000, (4, 3), (6, 2))
    assert memory.device is not None
    assert (memory.device.ordinal, memory.device.stream) == (1, 77)
    strided = memory_of(CudaArray(strides=(2, 8), typestr="<f4"))
    assert strided.strides_bytes == (2, 8)
    assert strided.device is not None and strided.device.stream == 0
    assert memory_of(CudaArray(shape=())).strides_bytes == ()


@with_kernels
@pytest.mark.parametrize(
    ("array", "text"),
    [
        (CudaArray(typestr="<i4"), "<i4"),
        (CudaArray(device=10), "not in host memory"),
    ],
)
def test_what_cannot_be_counted_on_a_gpu_is_refused(array: CudaArray, text: str) -> None:
    with pytest.raises(pertoken.UnsupportedTensorError, match=text):
        Histogram.from_values(array)


@with_kernels
@pytest.mark.skipif(HAS_DRIVER, reason="this machine has a GPU")
def test_without_a_driver_the_error_says_so() -> None:
    with pytest.raises(pertoken.DeviceError, match="driver could not be loaded"):
        Histogram.from_values(CudaArray())


@pytest.mark.skipif(INFO["cuda_kernels"] != "none", reason="this build has kernels")
def test_without_kernels_the_error_says_what_to_do() -> None:
    with pytest.raises(pertoken.UnsupportedTensorError, match="copy it to the host"):
        Histogram.from_values(CudaArray())
