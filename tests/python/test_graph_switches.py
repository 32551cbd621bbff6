"""What stays of a recording in CUDA graphs: nodes that are switched off, and torch as it was."""

from __future__ import annotations

import gc
import weakref

import pytest

import pertoken
from fake_gpu import FakeGpu, FakeGraph
from graph_model import Model, capture, check_layers, on_gpu
from pertoken import _native

REPLAY = "torch.cuda.CUDAGraph.replay"
STAMPS = 4  # of three layers in a row

pytestmark = pytest.mark.skipif(
    _native.build_info()["cuda_kernels"] == "none", reason="built without kernels"
)


def replay(gpu: FakeGpu, graph: FakeGraph, times: int = 1) -> None:
    for _ in range(times):
        with gpu.busy():
            graph.replay()


def layers_in(prof: pertoken.Recording) -> int:
    """How many replays have layers, each all of them."""
    profile = prof.result()
    assert profile.losses["device_spans_lost"] == {}
    counts = {len(on_gpu(profile, f"layers.{i}")) for i in range(3)}
    assert len(counts) == 1
    return counts.pop()


def test_stamps_are_off_but_in_replays_that_are_recorded(gpu: FakeGpu) -> None:
    model = Model(gpu)
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        graph = capture(model)
        assert graph.disabled_nodes == STAMPS
        replay(gpu, graph, 3)
        assert graph.disabled_nodes == 0  # every replay is recorded
    assert graph.disabled_nodes == STAMPS
    replay(gpu, graph)
    profile = prof.result()
    replays = on_gpu(profile, REPLAY)
    assert len(replays) == 3
    check_layers(profile, replays)


def test_where_steps_are_sampled_they_are_off_behind_each(gpu: FakeGpu) -> None:
    model = Model(gpu)
    with pertoken.profile(model, modules=["layers.*"], budget=1e-9) as prof:
        graph = capture(model)
        replay(gpu, graph)  # in no step, so not sampled
        assert graph.disabled_nodes == STAMPS
        for _ in range(30):
            with pertoken.step("decode"):
                replay(gpu, graph)
            assert graph.disabled_nodes == STAMPS
            prof.recorder.drain()
    steps = prof.result().steps
    detailed = int((steps["detail"][1:] != "root").sum())
    assert layers_in(prof) == 1 + detailed < 31


def test_a_graph_that_was_made_before_the_recording_is_stamped_and_not_switched(
    gpu: FakeGpu,
) -> None:
    model = Model(gpu)
    graph = gpu.new_graph()
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        capture(model, graph)
        replay(gpu, graph, 2)
        assert graph.disabled_nodes == 0
    assert graph.disabled_nodes == 0
    assert layers_in(prof) == 2


@pytest.mark.parametrize("asked", [False, True])
def test_graphs_are_instantiated_when_they_would_have_been(gpu: FakeGpu, asked: bool) -> None:
    model = Model(gpu)
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        for graph in (gpu.new_graph(asked), gpu.new_graph(keep_graph=asked)):
            capture(model, graph)
            assert (graph.exec is None) == asked
            replay(gpu, graph)
            assert graph.disabled_nodes == 0
        if asked:
            graph.instantiate()  # in which all would be enabled
            assert graph.disabled_nodes == STAMPS
            replay(gpu, graph)
    assert layers_in(prof) == 2 + asked
    assert graph.disabled_nodes == STAMPS


def test_a_graph_that_cannot_be_instantiated_raises_at_the_end_of_its_capture(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakeGraph) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(gpu.new_graph, "instantiate", fail)
    model = Model(gpu)
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        graph = gpu.new_graph()
        with pytest.raises(RuntimeError, match="out of memory"):
            capture(model, graph)
    assert layers_in(prof) == 0
    assert prof.result().losses["faults"] == {}


def test_arguments_that_torch_does_not_know_are_its_own_to_refuse(gpu: FakeGpu) -> None:
    with pertoken.profile(Model(gpu)):
        with pytest.raises(TypeError, match="streams"):
            gpu.new_graph(streams=False)  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            gpu.new_graph(False, False)  # type: ignore[call-arg]


def test_a_graph_that_is_reset_is_left_alone(gpu: FakeGpu) -> None:
    model = Model(gpu)
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        graph = capture(model)
        replay(gpu, graph)
        graph.reset()
        capture(model, graph)
        assert graph.disabled_nodes == STAMPS
        replay(gpu, graph)
        graph.reset()
        graph = capture(model)
        replay(gpu, graph)
        del graph
    assert layers_in(prof) == 3


def test_the_recording_that_ends_last_switches_off(gpu: FakeGpu) -> None:
    model = Model(gpu)
    outer = pertoken.profile(model, modules=["layers.*"])
    inner = pertoken.profile(model, modules=["layers.*"])
    with outer:
        with inner:
            graph = capture(model)
            replay(gpu, graph)
        assert graph.disabled_nodes == 0
        replay(gpu, graph)
    assert graph.disabled_nodes == STAMPS
    assert (layers_in(outer), layers_in(inner)) == (2, 1)
    del outer, inner


def test_a_recording_that_goes_on_knows_the_graphs_that_are_still_there(gpu: FakeGpu) -> None:
    model = Model(gpu)
    prof = pertoken.profile(model, modules=["layers.*"])
    with prof:
        graph, other = capture(model), capture(model)
        replay(gpu, graph)
        replay(gpu, other)
    other.reset()
    capture(model, other)
    with prof:
        assert graph.disabled_nodes == STAMPS
        replay(gpu, graph)
        replay(gpu, other)
    assert layers_in(prof) == 3
    profile = prof.result()
    assert len(on_gpu(profile, REPLAY)) == 4
    assert profile.losses["replays_without_layers"] == 1


def test_a_graph_does_not_keep_the_recording(gpu: FakeGpu) -> None:
    model = Model(gpu)
    gc.collect()
    gc.disable()
    try:
        prof = pertoken.profile(model, modules=["layers.*"])
        with prof:
            graph = capture(model)
            replay(gpu, graph)
        gone = weakref.ref(prof.graph_captures)
        del prof
        assert gone() is None
        replay(gpu, graph)
    finally:
        gc.enable()
