"""Observing inside the replays of CUDA graphs, on a driver that is not one.

The fake driver runs the statistics kernel's own arithmetic on the host's memory, at each replay on
what lies there then.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import invariants
import pertoken
from fake_gpu import FakeGpu, FakeGraph, on_gpu, put_on
from pertoken import _native
from waiting import wait_for

IDS = torch.zeros(2, 3, dtype=torch.long)

pytestmark = pytest.mark.skipif(
    _native.build_info()["cuda_kernels"] == "none", reason="built without kernels"
)


class Layer(torch.nn.Module):
    """Puts out the same memory each time, as in a graph; its row r holds r + `value`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        put_on(self, 0)
        self.out = on_gpu(torch.arange(2.0)[:, None, None].expand(2, 3, 4) + value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out


class Model(torch.nn.Module):
    """Three layers; replays a graph of them where it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(10.0 * (i + 1)) for i in range(3))
        self.graph: FakeGraph | None = None

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        if self.graph is not None:
            self.graph.replay()
            return input_ids
        for layer in self.layers:
            layer(input_ids)
        return input_ids


def capture(gpu: FakeGpu, model: Model) -> FakeGraph:
    graph = gpu.new_graph()
    graph.capture_begin()
    model(IDS)
    graph.capture_end()
    return graph


def recording(model: Model, **options: Any) -> pertoken.Recording:
    options.setdefault("activation_every", 1)
    return pertoken.profile(model, activations=["layers.*"], **options)


def arrive(prof: pertoken.Recording, observations: int) -> None:
    """Waits until what was launched has been counted, and read."""
    wait_for(lambda: len(prof.result().activations) == observations)


def test_each_replay_is_observed_at_its_own_step(gpu: FakeGpu) -> None:
    model = Model()
    with recording(model) as prof:
        graph = capture(gpu, model)
        for _ in range(3):
            with pertoken.step("decode"):
                graph.replay()
        graph.replay()
        arrive(prof, 12)
    profile = prof.result()
    invariants.check(profile)
    table = profile.activations
    assert table["step"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, -1, -1, -1]
    assert table["site"].tolist() == ["layers.0", "layers.1", "layers.2"] * 4
    assert table["min"].tolist() == [10, 20, 30] * 4
    assert table["max"].tolist() == [11, 21, 31] * 4
    assert table["count"].tolist() == [24] * 12
    assert profile.losses["observations_skipped"] == {}
    assert profile.losses["faults"] == {}
    assert (profile.steps["observe_ns"][1:] > 0).all()
    assert sum(of.observations for of in prof.totals().activations.values()) == 12


def test_a_nan_that_a_replay_puts_out_is_found_there(gpu: FakeGpu) -> None:
    model = Model()
    with recording(model) as prof:
        model.graph = capture(gpu, model)
        for i in range(4):
            if i == 2:
                arrive(prof, 6)
                model.layers[1].out[1, 2, 3] = float("nan")
            model(IDS)
        arrive(prof, 12)
    found = prof.result().first_nonfinite()
    assert found is not None
    assert (found.site, found.step) == ("layers.1", 3)


def test_rows_are_those_of_the_batch(gpu: FakeGpu) -> None:
    model = Model()
    with recording(model, activation_rows=True) as prof:
        model.graph = capture(gpu, model)
        model(IDS)
        arrive(prof, 6)
    table = prof.result().activations
    assert table["row"].tolist() == [0, 1] * 3
    assert table["max"].tolist() == [10, 11, 20, 21, 30, 31]
    assert table["count"].tolist() == [12] * 6


def test_the_rate_chooses_among_replays_without_a_new_capture(gpu: FakeGpu) -> None:
    model = Model()
    with recording(model, activation_every=4) as prof:
        graph = capture(gpu, model)
        for _ in range(33):
            with pertoken.step("decode"):
                graph.replay()
        arrive(prof, 27)
    profile = prof.result()
    table = profile.activations.where(profile.activations["site"] == "layers.0")
    assert table["weight"].tolist() == [1] + [4] * 8
    assert profile.losses["observations_skipped"] == {}


@pytest.mark.parametrize("in_forward", [False, True])
def test_a_budget_chooses_which_replays_are_observed_and_which_are_stamped(
    gpu: FakeGpu, in_forward: bool
) -> None:
    """Each by a coin of its own, without a new capture; the columns say what each replay got."""
    model = Model()

    def replay(graph: FakeGraph) -> None:
        if in_forward:
            model(IDS)
        else:
            with pertoken.step("decode"):
                graph.replay()

    def times_chosen(profile: pertoken.Profile) -> int:
        kinds = profile.meta["cost"]["kinds"].values()
        return sum(kind["detailed"]["activations"] for kind in kinds)

    def chosen(profile: pertoken.Profile) -> tuple[set[int], set[int]]:
        spans = profile.spans
        stamped = spans["step"][(spans["device"] >= 0) & (spans["site"] == "layers.1")]
        return set(profile.activations["step"].tolist()), set(stamped.tolist())

    with recording(model, activation_every=2, budget=1.0) as prof:
        graph = model.graph = capture(gpu, model)
        in_capture = times_chosen(prof.result())  # in whose step nothing comes of it

        def times_observed(profile: pertoken.Profile) -> int:
            return times_chosen(profile) - in_capture

        def all_kinds_seen() -> bool:
            for _ in range(50):
                with gpu.busy():
                    replay(graph)
                prof.recorder.drain()  # so that there is room for the next, however late a thread
            wait_for(lambda: len(prof.result().activations) == 3 * times_observed(prof.result()))
            profile = prof.result()
            observed, stamped = chosen(profile)
            steps = profile.steps["step"][1:].tolist()
            return len({(step in observed, step in stamped) for step in steps}) == 4

        wait_for(all_kinds_seen)
    profile = prof.result()
    invariants.check(profile)
    observed, stamped = chosen(profile)
    table, steps = profile.activations, profile.steps
    assert len(observed) == times_observed(profile)
    assert len(table) == 3 * len(observed)
    assert table["site"].tolist() == ["layers.0", "layers.1", "layers.2"] * len(observed)
    assert (table["max"] == table["min"] + 1).all()
    weights = table["weight"].reshape(-1, 3)
    assert (weights == weights[:, :1]).all() and weights.min() >= 2 - 1e-9
    assert stamped == set(steps["step"][1:][steps["detail"][1:] != "root"].tolist())
    for site in ("torch.cuda.CUDAGraph.replay", "layers.0", "layers.2"):
        spans = profile.spans.where(profile.spans["site"] == site)
        assert sorted(spans["step"][spans["device"] >= 0].tolist()) == sorted(stamped)
    assert profile.losses["observations_skipped"] == {}
    assert profile.losses["device_spans_lost"] == {}
    assert profile.losses["faults"] == {}


def test_steps_without_layers_are_observed_all_the_same(gpu: FakeGpu) -> None:
    model = Model()
    with recording(model, modules="root") as prof:
        graph = capture(gpu, model)
        with pertoken.step("decode"):
            graph.replay()
        model.graph = graph
        model(IDS)
        arrive(prof, 6)
    profile = prof.result()
    assert profile.activations["step"].tolist() == [1] * 3 + [2] * 3


def test_a_value_by_hand_is_a_part_of_the_graph_as_well(gpu: FakeGpu) -> None:
    model, values = Model(), on_gpu(torch.full((5,), 3.0))
    with pertoken.profile(model, activation_every=1) as prof:
        graph = gpu.new_graph()
        graph.capture_begin()
        pertoken.observe("mine", values)
        graph.capture_end()
        graph.replay()
        arrive(prof, 1)
        values.fill_(4.0)
        graph.replay()
        arrive(prof, 2)
    table = prof.result().activations
    assert table["site"].tolist() == ["mine"] * 2
    assert table["max"].tolist() == [3, 4]


def test_replays_after_the_recording_and_in_the_next_one_write_nothing(gpu: FakeGpu) -> None:
    model = Model()
    with recording(model) as prof:
        graph = capture(gpu, model)
        graph.replay()
        arrive(prof, 3)
    graph.replay()
    with recording(model) as later:
        graph.replay()
        again = capture(gpu, model)
        again.replay()
        graph.replay()
        arrive(later, 3)
    profile = later.result()
    assert len(profile.activations) == 3
    assert profile.losses["observations_skipped"] == {}
    assert len(prof.result().activations) == 3


def test_graphs_that_are_gone_leave_their_room_to_others(gpu: FakeGpu) -> None:
    model = Model()
    graphs = 300  # there is room for 256 at once
    with recording(model) as prof:
        for i in range(graphs):
            graph = capture(gpu, model)
            with pertoken.step("decode"):
                graph.replay()
            del graph
            if i % 25 == 0:
                arrive(prof, 3 * (i + 1))
        arrive(prof, 3 * graphs)
    profile = prof.result()
    steps = profile.steps["step"][profile.steps["kind"] == "decode"].tolist()
    assert profile.activations["step"].tolist() == [step for step in steps for _ in range(3)]
    assert profile.losses["observations_skipped"] == {}


def test_two_recordings_observe_the_same_replay(gpu: FakeGpu) -> None:
    model = Model()
    outer, inner = recording(model), recording(model, activation_every=2)
    with outer, inner:
        graph = capture(gpu, model)
        for _ in range(4):
            with pertoken.step("decode"):
                graph.replay()
        arrive(outer, 12)
        wait_for(lambda: set(inner.result().activations["weight"].tolist()) == {1, 2})
    assert inner.result().losses["observations_skipped"] == {}


def test_a_replay_that_raises_is_counted_and_passes_through(gpu: FakeGpu) -> None:
    model = Model()
    with recording(model) as prof:
        graph = capture(gpu, model)
        executable = graph.exec
        del graph.exec
        with pytest.raises(AttributeError, match="exec"):
            graph.replay()
        graph.exec = executable
        with pertoken.step("decode"):
            graph.replay()
        arrive(prof, 3)
    profile = prof.result()
    assert profile.activations["step"].tolist() == [1] * 3
    assert profile.losses["observations_skipped"] == {"the GPU or its context had failed": 3}
