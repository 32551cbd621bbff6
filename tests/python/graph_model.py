"""A model of three kernels on a driver that is not one, which is captured and replayed."""

from __future__ import annotations

import itertools

import numpy as np
import torch

import pertoken
from fake_gpu import FakeGpu, FakeGraph, put_on

KERNEL_NS = 2_000_000
IDS = torch.zeros(1, 4, dtype=torch.long)


class Block(torch.nn.Module):
    """One kernel of 2 ms."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.gpu, self.kernel_ns = gpu, KERNEL_NS
        put_on(self, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.gpu.spin(self.kernel_ns)
        return x * self.weight


class Model(torch.nn.Module):
    """Three blocks; replays a graph of them where it has one, as a compiled model does."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Block(gpu) for _ in range(3))
        self.graph: FakeGraph | None = None

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = input_ids.float()
        if self.graph is not None:
            self.graph.replay()
            return x
        for layer in self.layers:
            x = layer(x)
        return x


def capture(model: Model, graph: FakeGraph | None = None) -> FakeGraph:
    """Captures a call of the model, into a new graph unless one is given."""
    if graph is None:
        graph = model.layers[0].gpu.new_graph()
    graph.capture_begin()
    model(IDS)
    graph.capture_end()
    return graph


def on_gpu(profile: pertoken.Profile, site: str) -> pertoken.Table:
    """The spans of a site on devices."""
    spans = profile.spans
    return spans.where((spans["device"] >= 0) & (spans["site"] == site))


def check_layers(profile: pertoken.Profile, replays: pertoken.Table) -> None:
    """Each layer of each replay is as long as its kernel, and lies in the replay's order."""
    order = [on_gpu(profile, f"layers.{i}") for i in range(3)]
    for layer in order:
        assert len(layer) == len(replays)
        assert (np.abs(layer["dur_ns"] - KERNEL_NS) < KERNEL_NS // 10).all()
    for before, after in itertools.pairwise(order):
        assert (before["start_ns"] + before["dur_ns"] <= after["start_ns"]).all()
    roots = on_gpu(profile, "Model")
    inside = set(roots["span"].tolist()) | set(replays["span"].tolist())
    assert all(set(layer["parent"].tolist()) <= inside for layer in order)
