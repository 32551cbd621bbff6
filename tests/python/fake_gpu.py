"""A GPU for tests on machines without one: the fake driver of the C++ tests, built as a library.

Its memory is the host's: a tensor that counts as lying on it is read where it is, once the device
comes to it, so that a test holds what is observed and leaves it as it is.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_exchange import table_of_gpu_tensors
from pertoken import _native, device_timing, graph_captures, observing

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    *sorted((ROOT / "tests" / "cpp").glob("fake_driver*.cpp")),
    *(
        ROOT / "csrc/core" / f"{name}.cpp"
        for name in ("exp_boundaries", "float_bits", "tensor_view")
    ),
    ROOT / "csrc" / "cuda" / "stats_plan.cpp",
]
_HEADERS = ("driver_api.h", "device_ops.h", "stamp_record.h", "tagged_words.h")


class FakeGpu:
    """One or more devices; each has streams, the first of which is 0, the default."""

    def __init__(self, library: ctypes.CDLL, devices: int) -> None:
        self.library, self.devices = library, devices
        self.streams: dict[int, int] = {}  # the current one of each device
        self.new_graph: type[FakeGraph] = FakeGraph

    def current_stream(self, device: int) -> int:
        return self.streams.get(device, 0)

    def spin(self, duration_ns: int, device: int = 0) -> None:
        """Enqueues a kernel that takes so long."""
        stream = ctypes.c_void_p(self.current_stream(device))
        self.library.fake_spin(stream, ctypes.c_longlong(duration_ns), device)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Has the devices begin with what is enqueued inside once all of it is.

        So that its times are those of the kernels alone, however long the host takes to enqueue it.
        """
        devices = range(self.devices)
        streams = [(ctypes.c_void_p(self.current_stream(device)), device) for device in devices]
        for stream, device in streams:
            self.library.fake_hold(stream, device)
        try:
            yield
        finally:
            for stream, device in streams:
                self.library.fake_release(stream, device)


class FakeGraph:
    """As `torch.cuda.CUDAGraph`, on the current stream of device 0."""

    gpu: FakeGpu

    def __init__(self, keep_graph: bool = False) -> None:
        self.keep_graph = keep_graph
        self.graph: int | None = None
        self.exec: int | None = None

    def capture_begin(self) -> None:
        if self.exec is not None:
            raise RuntimeError("This CUDAGraph instance already owns a captured graph.")
        stream = self.gpu.streams[0] = self.gpu.library.fake_new_stream(0)
        self.gpu.library.fake_begin_capture(ctypes.c_void_p(stream))

    def capture_end(self) -> None:
        stream = ctypes.c_void_p(self.gpu.streams.pop(0))
        self.graph = self.gpu.library.fake_end_capture(stream)
        if not self.keep_graph:
            self.instantiate()
            self._drop_graph()

    def instantiate(self) -> None:
        self._drop_executable()
        self.exec = self.gpu.library.fake_instantiate(ctypes.c_void_p(self.graph))

    def raw_cuda_graph(self) -> int:
        if not self.keep_graph or self.graph is None:
            raise RuntimeError("You cannot access the raw cudaGraph_t.")
        return self.graph

    def raw_cuda_graph_exec(self) -> int:
        if self.exec is None:
            raise RuntimeError("You cannot access the raw cudaGraphExec_t.")
        return self.exec

    def replay(self) -> None:
        """Replays it."""
        if self.exec is None:
            if self.graph is None:
                raise RuntimeError("Called CUDAGraph::replay without a preceding capture.")
            FakeGraph.instantiate(self)  # unseen, as what torch does itself
        stream = ctypes.c_void_p(self.gpu.current_stream(0))
        self.gpu.library.fake_replay(ctypes.c_void_p(self.exec), stream)

    @property
    def disabled_nodes(self) -> int:
        """How many of what is replayed are switched off."""
        return int(self.gpu.library.fake_disabled_nodes(ctypes.c_void_p(self.exec)))

    def reset(self) -> None:
        """Gives up what it has captured."""
        self._drop_executable()
        self._drop_graph()

    def _drop_graph(self) -> None:
        graph, self.graph = self.graph, None
        if graph is not None:
            self.gpu.library.fake_drop_graph(ctypes.c_void_p(graph))

    def _drop_executable(self) -> None:
        executable, self.exec = self.exec, None
        if executable is not None:
            self.gpu.library.fake_drop_executable(ctypes.c_void_p(executable))

    def __del__(self) -> None:
        if hasattr(self, "graph"):
            FakeGraph.reset(self)


def _library() -> ctypes.CDLL:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler for the fake driver")
    headers = [
        *sorted((ROOT / "tests/cpp").glob("*.h")),
        *sorted((ROOT / "csrc/cuda").glob("stats_*.h")),
        *sorted((ROOT / "csrc/cuda").glob("logit_*.h")),
        *(ROOT / "csrc/cuda" / name for name in _HEADERS),
        *(
            ROOT / "csrc/core" / f"{name}.h"
            for name in ("float_bits", "softmax_sums", "tensor_view")
        ),
    ]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (*SOURCES, *headers)))
    path = ROOT / "build" / f"fake_driver_{digest.hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        made = path.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
        folders = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/cpp'}"]
        command = [compiler, *flags, *folders, *map(str, SOURCES), "-o", str(made)]
        subprocess.run(command, check=True, timeout=300)
        made.replace(path)
    library = ctypes.CDLL(str(path))
    library.fake_start.restype = ctypes.c_void_p
    library.fake_new_stream.restype = ctypes.c_void_p
    library.fake_end_capture.restype = ctypes.c_void_p
    library.fake_instantiate.restype = ctypes.c_void_p
    library.fake_disabled_nodes.restype = ctypes.c_ulonglong
    library.fake_live_events.restype = ctypes.c_ulonglong
    library.fake_misuses.restype = ctypes.c_ulonglong
    return library


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch, devices: int = 1) -> Iterator[FakeGpu]:
    """Puts it in the driver's place; parameters are on the device that `device` of them names."""
    library = _library()
    gpu = FakeGpu(library, devices)
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    _native.replace_driver(new_capsule(library.fake_start(devices), None, None))
    monkeypatch.setattr(device_timing, "cuda_index", lambda tensor: getattr(tensor, "gpu", None))
    for module in (device_timing, observing):
        monkeypatch.setattr(module, "current_stream_function", lambda: gpu.current_stream)
    for name, value in _TENSOR_ON_GPU.items():
        monkeypatch.setattr(torch.Tensor, name, value)
    graph_class = type("CUDAGraph", (FakeGraph,), {"gpu": gpu, **_own(FakeGraph)})
    monkeypatch.setattr(graph_captures, "graph_class", lambda: graph_class)
    gpu.new_graph = graph_class
    try:
        with table_of_gpu_tensors():
            yield gpu
    finally:
        library.fake_stop()
        _native.replace_driver(None)


@contextmanager
def orderly_gpu(monkeypatch: pytest.MonkeyPatch, devices: int = 1) -> Iterator[FakeGpu]:
    """The same for a whole test, which is to use the driver as it wants to be used.

    What recordings hold of it goes with them.
    """
    with fake_gpu(monkeypatch, devices) as gpu:
        yield gpu
        gc.collect()
        assert gpu.library.fake_misuses() == 0
        assert gpu.library.fake_live_events() == 0


# What a tensor says of itself, where it has been put on a device.
_TENSOR_ON_GPU: dict[str, Any] = {
    "is_cpu": property(lambda tensor: not hasattr(tensor, "gpu")),
    "is_cuda": property(lambda tensor: hasattr(tensor, "gpu")),
    "get_device": lambda tensor: getattr(tensor, "gpu", -1),
}


def on_gpu(tensor: torch.Tensor, device: int = 0) -> torch.Tensor:
    """The same tensor, which counts as lying on a device."""
    tensor.gpu = device  # type: ignore[attr-defined]
    return tensor


def _own(cls: type) -> dict[str, object]:
    return {name: value for name, value in cls.__dict__.items() if callable(value)}


def put_on(module: torch.nn.Module, device: int) -> None:
    """Has the parameters of a module count as lying on a device."""
    for parameter in module.parameters():
        parameter.gpu = device  # type: ignore[attr-defined]
