"""Spans inside the replays of CUDA graphs, on a driver that is not one."""

from __future__ import annotations

import pytest

import invariants
import pertoken
from fake_gpu import FakeGpu
from graph_model import IDS, KERNEL_NS, Model, capture, check_layers, on_gpu
from pertoken import _native

# Of placing what the host took seconds to get to, by a rate that is known to some parts in 1000.
LARGEST_ERROR_NS = 100_000_000
GRAPHS_AT_ONCE = 4095

pytestmark = pytest.mark.skipif(
    _native.build_info()["cuda_kernels"] == "none", reason="built without kernels"
)


def test_layers_have_their_times_in_every_replay(gpu: FakeGpu) -> None:
    model = Model(gpu)
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        graph = capture(model)
        for _ in range(5):
            with pertoken.step("decode"), gpu.busy():
                graph.replay()
        with gpu.busy():
            graph.replay()
    profile = prof.result()
    invariants.check_spans(profile)
    replays = on_gpu(profile, "torch.cuda.CUDAGraph.replay")
    assert len(replays) == 6
    assert (replays["dur_ns"] >= 2.9 * KERNEL_NS).all()
    assert replays["step"].tolist() == [1, 2, 3, 4, 5, -1]
    check_layers(profile, replays)
    assert on_gpu(profile, "layers.1")["step"].tolist() == [1, 2, 3, 4, 5, -1]
    assert (profile.steps["gpu_ns"][1:] >= 2.9 * KERNEL_NS).all()
    assert profile.losses["device_spans_lost"] == {}
    assert profile.losses["replays_without_layers"] == 0
    assert 0 < profile.losses["device_clock_error_ns"] < LARGEST_ERROR_NS


def test_a_step_whose_model_is_a_replay_has_its_layers(gpu: FakeGpu) -> None:
    model = Model(gpu)
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        model.graph = capture(model)
        for _ in range(3):
            with gpu.busy():
                model(IDS)
    profile = prof.result()
    invariants.check_spans(profile)
    replays = on_gpu(profile, "torch.cuda.CUDAGraph.replay")
    assert replays["step"].tolist() == [1, 2, 3]
    check_layers(profile, replays)


def test_a_graph_captured_before_has_times_as_a_whole_and_it_is_said(gpu: FakeGpu) -> None:
    model = Model(gpu)
    graph = capture(model)
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        for _ in range(3):
            with gpu.busy():
                graph.replay()
    profile = prof.result()
    replays = on_gpu(profile, "torch.cuda.CUDAGraph.replay")
    assert len(replays) == 3
    assert (replays["dur_ns"] >= 2.9 * KERNEL_NS).all()
    assert profile.losses["replays_without_layers"] == 3
    assert any("captured before the recording began" in r for r in profile.losses["reasons"])
    loaded_losses = pertoken.merge([profile]).losses
    assert loaded_losses["replays_without_layers"] == 3


def test_with_roots_alone_nothing_is_said_of_layers(gpu: FakeGpu) -> None:
    model = Model(gpu)
    graph = capture(model)
    with pertoken.profile(model, modules="root") as prof, gpu.busy():
        graph.replay()
    profile = prof.result()
    assert len(on_gpu(profile, "torch.cuda.CUDAGraph.replay")) == 1
    assert profile.losses["replays_without_layers"] == 0
    assert profile.losses["reasons"] == []


def test_a_graph_that_is_captured_again_is_another(gpu: FakeGpu) -> None:
    model = Model(gpu)
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        graph = capture(model)
        with gpu.busy():
            graph.replay()
        graph.reset()
        graph.capture_begin()
        model.layers[0](IDS.float())
        graph.capture_end()
        with gpu.busy():
            graph.replay()
    profile = prof.result()
    assert [len(on_gpu(profile, f"layers.{i}")) for i in range(3)] == [2, 1, 1]
    assert profile.losses["device_spans_lost"] == {}


def test_a_server_that_captures_for_weeks_has_layers_of_its_last_graph(gpu: FakeGpu) -> None:
    model = Model(gpu)
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        for _ in range(GRAPHS_AT_ONCE + 100):
            capture(model)  # gone at once
        graph = capture(model)
        for _ in range(3):
            with gpu.busy():
                graph.replay()
    profile = prof.result()
    replays = on_gpu(profile, "torch.cuda.CUDAGraph.replay")
    assert len(replays) == 3
    check_layers(profile, replays)
    assert profile.losses["device_spans_lost"] == {}
    assert profile.losses["replays_without_layers"] == 0


def test_two_recordings_see_the_same_replay(gpu: FakeGpu) -> None:
    model = Model(gpu)
    outer = pertoken.profile(model, modules=["layers.*"])
    inner = pertoken.profile(model, modules=["layers.1"])
    with outer, inner:
        graph = capture(model)
        with gpu.busy():
            graph.replay()
    assert len(on_gpu(outer.result(), "layers.2")) == 1
    assert len(on_gpu(inner.result(), "layers.1")) == 1
    assert len(on_gpu(inner.result(), "layers.2")) == 0
    del outer, inner


def test_steps_that_a_budget_leaves_bare_still_capture_their_layers(gpu: FakeGpu) -> None:
    model = Model(gpu)
    for layer in model.layers:
        layer.kernel_ns = 10_000
    with pertoken.profile(model, modules=["layers.*"], budget=1e-9) as prof:
        graphs = [capture(model) for _ in range(100)]  # each in a step, almost all of them bare
        for graph in graphs:
            with gpu.busy():  # in no step, so not sampled
                graph.replay()
            prof.recorder.drain()  # so that there are events for the next, whatever thread is late
        for _ in range(100):
            with pertoken.step("decode"), gpu.busy():
                graphs[0].replay()
            prof.recorder.drain()
    profile = prof.result()
    invariants.check_spans(profile)
    assert profile.losses["device_spans_lost"] == {}
    steps = profile.steps
    assert len(steps) == 200 and (steps["detail"][:100] == "root").any()
    assert (steps["detail"][100:] == "root").any()
    detailed = steps["step"][100:][steps["detail"][100:] != "root"].tolist()
    for site in ("torch.cuda.CUDAGraph.replay", "layers.0", "layers.1", "layers.2"):
        assert sorted(on_gpu(profile, site)["step"].tolist()) == [-1] * 100 + detailed


def test_nothing_is_left_in_torch_and_errors_pass_through(gpu: FakeGpu) -> None:
    cls = gpu.new_graph
    before = dict(cls.__dict__)
    model = Model(gpu)
    with pertoken.profile(model, modules=["layers.*"]):
        assert cls.replay is not before["replay"]
        with pytest.raises(RuntimeError, match="without a preceding capture"):
            cls().replay()
    assert dict(cls.__dict__) == before
