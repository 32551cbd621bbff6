"""Layers inside compiled models on a GPU, called and replayed, by a driver that is not one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import invariants
import pertoken
from compiler import compilations, fresh_compiler, tensor_operator
from fake_gpu import FakeGpu, FakeGraph, put_on
from pertoken import _native
from waiting import wait_for

KERNEL_NS = 2_000_000
LAYERS = ["layers.0", "layers.1", "layers.2"]
REPLAY = "torch.cuda.CUDAGraph.replay"

needs_kernels = pytest.mark.skipif(
    _native.build_info()["cuda_kernels"] == "none", reason="built without kernels"
)


@pytest.fixture(autouse=True)
def compiles_afresh() -> Iterator[None]:
    with fresh_compiler():
        yield


@pytest.fixture(autouse=True)
def spin_operator(gpu: FakeGpu) -> Iterator[None]:
    """A kernel of 2 ms that the compiler knows nothing of, and that refuses what is negative."""

    def spin(x: Tensor) -> Tensor:
        gpu.spin(KERNEL_NS)
        if (x < 0).any():
            raise LookupError("negative")
        return x.clone()

    with tensor_operator("spin", spin):
        yield


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.pertoken_test.spin(x * self.weight)


class Blocks(nn.Module):
    """What is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))
        put_on(self, 0)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        for layer in self.layers:
            x = layer(x)
        return x


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="aot_eager", fullgraph=True)


class Graphed:
    """As the runtime of what is compiled to CUDA graphs: it runs, then captures, then replays."""

    def __init__(self, run: Callable[..., Any], gpu: FakeGpu) -> None:
        self.run, self.gpu = run, gpu
        self.graph: FakeGraph | None = None
        self.outputs: Any = None

    def __call__(self, *args: Any) -> Any:
        if self.outputs is None:
            self.outputs = self.run(*args)
            return self.outputs
        if self.graph is None:
            self.graph = self.gpu.new_graph()
            self.graph.capture_begin()
            self.run(*args)
            self.graph.capture_end()
        with self.gpu.busy():
            self.graph.replay()
        return self.outputs


def graphed(model: nn.Module, gpu: FakeGpu) -> Any:
    """Compiled so."""

    def backend(graph: Any, inputs: Any) -> Any:
        return Graphed(torch._dynamo.lookup_backend("aot_eager")(graph, inputs), gpu)

    return torch.compile(model, backend=backend, fullgraph=True)


def record(model: Any, **options: Any) -> pertoken.Recording:
    return pertoken.profile(model, compiled_layers=True, **{"modules": ["layers.*"], **options})


def on_gpu(profile: pertoken.Profile, site: str) -> pertoken.Table:
    spans = profile.spans
    return spans.where((spans["device"] >= 0) & (spans["site"] == site))


def run(model: Any, steps: int) -> None:
    for _ in range(steps):
        model(torch.ones(1, 4))
        time.sleep(0.012)


def drained(recording: pertoken.Recording, site: str, count: int) -> pertoken.Profile:
    """Once as many spans of a site have come in from the GPU."""
    wait_for(lambda: len(on_gpu(recording.result(), site)) >= count)
    profile = recording.result()
    assert len(on_gpu(profile, site)) == count, str(profile.losses)
    invariants.check_spans(profile)
    return profile


def test_inlined_layers_are_timed_on_the_gpu(gpu: FakeGpu) -> None:
    model = Blocks()
    call = compiled(model)
    with record(call) as recording:
        run(call, 4)
    profile = drained(recording, "layers.2", 4)
    spans = profile.spans
    roots = on_gpu(profile, "Blocks")
    for name in LAYERS:
        layer = on_gpu(profile, name)
        assert layer["step"].tolist() == [0, 1, 2, 3]
        assert (layer["dur_ns"] > KERNEL_NS * 9 // 10).all()
        assert layer["parent"].tolist() == roots["span"].tolist()
        on_host = spans.where((spans["device"] < 0) & (spans["site"] == name))
        assert on_host["step"].tolist() == [0, 1, 2, 3]
    assert profile.losses["device_spans_lost"] == {}
    assert profile.losses["inlined_modules"] == []


@needs_kernels
def test_each_replay_of_what_was_compiled_has_its_layers(gpu: FakeGpu) -> None:
    model = graphed(Blocks(), gpu)
    with record(model) as recording:
        run(model, 6)  # once as it is, once captured, and replayed
        counts = compilations()
    profile = drained(recording, "layers.2", 6)
    replays = on_gpu(profile, REPLAY)
    assert replays["step"].tolist() == [1, 2, 3, 4, 5]
    inside = {*replays["span"].tolist(), *on_gpu(profile, "Blocks")["span"].tolist()}
    off_ns = KERNEL_NS // 10 + profile.losses["device_clock_error_ns"]
    for name in LAYERS:
        layer = on_gpu(profile, name)
        assert layer["step"].tolist() == [0, 1, 2, 3, 4, 5]
        assert (np.abs(layer["dur_ns"][1:] - KERNEL_NS) < off_ns).all()
        assert set(layer["parent"].tolist()) <= inside
    assert profile.losses["device_spans_lost"] == {}
    assert profile.losses["replays_without_layers"] == 0
    assert profile.losses["inlined_modules"] == []
    run(model, 1)
    assert compilations() == counts


@needs_kernels
def test_a_later_recording_says_why_replays_have_no_layers(gpu: FakeGpu) -> None:
    model = graphed(Blocks(), gpu)
    with record(model):
        run(model, 2)
    with record(model) as later:
        run(model, 3)
    profile = drained(later, REPLAY, 3)
    assert len(on_gpu(profile, "layers.1")) == 0
    assert profile.losses["replays_without_layers"] == 3
    assert any("captured before the recording began" in r for r in profile.losses["reasons"])


@needs_kernels
def test_a_capture_in_a_step_that_a_budget_leaves_bare_is_stamped(gpu: FakeGpu) -> None:
    model = Blocks()
    call = compiled(model)
    with record(model, budget=1e-9) as recording:
        run(call, 30)  # until almost no step has layers
        graph = gpu.new_graph()
        graph.capture_begin()
        call(torch.ones(1, 4))
        graph.capture_end()
        for _ in range(12):  # the first few of a declared kind have all detail
            with pertoken.step("decode"), gpu.busy():
                graph.replay()
            time.sleep(0.008)
    profile = recording.result()
    assert len(on_gpu(profile, "layers.1")) < 30
    replays = on_gpu(drained(recording, REPLAY, len(on_gpu(profile, REPLAY))), REPLAY)
    assert len(replays) >= 1
    layers = on_gpu(drained(recording, "layers.1", len(on_gpu(profile, "layers.1"))), "layers.1")
    assert set(replays["step"].tolist()) <= set(layers["step"].tolist())


def test_an_exception_closes_what_was_open_on_the_gpu(gpu: FakeGpu) -> None:
    call = compiled(Blocks())
    with record(call) as recording:
        for sign in (1, -1, 1):
            try:
                call(sign * torch.ones(1, 4))
            except LookupError as error:
                assert str(error) == "negative"
            time.sleep(0.012)
        with pytest.raises(LookupError), pertoken.step("decode"):
            call(-torch.ones(1, 4))
        run(call, 1)
    profile = drained(recording, "layers.0", 5)
    roots = on_gpu(profile, "Blocks")["span"].tolist()
    assert on_gpu(profile, "layers.0")["parent"].tolist() == roots
    assert on_gpu(profile, "layers.2")["step"].tolist() == [0, 2, 4]
    assert profile.losses["device_spans_lost"] == {}


@pytest.mark.parametrize("sign", [1, -1], ids=["ends", "raises"])
def test_a_recording_that_stops_inside_a_compiled_call(gpu: FakeGpu, sign: int) -> None:
    """The layer that is open ends on the GPU, whether the call comes to its end or raises."""
    model = Blocks()
    call = compiled(model)
    recording = record(call)
    with recording:
        run(call, 1)
    recording.start()

    def stop_and_spin(duration_ns: int) -> None:
        recording.stop()
        FakeGpu.spin(gpu, duration_ns)

    gpu.spin = stop_and_spin  # type: ignore[method-assign]
    try:
        call(sign * torch.ones(1, 4))
    except LookupError:
        assert sign < 0
    del gpu.spin
    with recording:
        run(call, 2)
    profile = drained(recording, "layers.2", 3)
    roots = on_gpu(profile, "Blocks")
    assert roots["parent"].tolist() == [-1] * len(roots)
    assert profile.losses["faults"] == {}
    assert profile.losses["device_spans_lost"] == {}
