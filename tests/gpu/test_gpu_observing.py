"""Observing a model on a GPU: counted as the processor counts, or counted as missing."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import pertoken  # noqa: E402

STEPS = 50


class Layer(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
        self.held: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        self.held.append(y.detach().clone())
        return y


class Model(torch.nn.Module):
    def __init__(self, width: int = 256, layers: int = 4) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(width) for _ in range(layers))
        self.width = width

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = torch.randn(*input_ids.shape, self.width, device="cuda", dtype=self.dtype)
        for layer in self.layers:
            x = layer(x)
            x += 1  # over what was observed
        return x

    @property
    def dtype(self) -> torch.dtype:
        return self.layers[0].linear.weight.dtype


def _observed(model: Model, **options: object) -> pertoken.Profile:
    ids = torch.zeros(3, 5, dtype=torch.long, device="cuda")
    with pertoken.profile(model, activations=["layers.?"], activation_every=1, **options) as prof:
        for _ in range(STEPS):
            model(ids)
    return prof.result()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("by_row", [False, True], ids=["whole", "rows"])
def test_every_output_is_as_the_processor_counts_it(dtype: torch.dtype, by_row: bool) -> None:
    torch.manual_seed(0)
    model = Model().cuda().to(dtype)
    with torch.inference_mode():
        profile = _observed(model, activation_rows=by_row)
    assert profile.losses["observations_skipped"] == {}
    table = profile.activations
    expected = []
    for step in range(STEPS):
        for layer in model.layers:
            output = layer.held[step].cpu()
            expected += list(output) if by_row else [output]
    assert len(table) == len(expected)
    for i, values in enumerate(expected):
        histogram = pertoken.Histogram.from_values(values)
        for name in ("count", "zeros", "nans", "min", "max"):
            assert table[name][i] == getattr(histogram, name), (i, name)
        assert table["sum_sq"][i] == pytest.approx(histogram.sum_sq, rel=1e-12)


def test_side_streams_and_memory_that_is_used_again() -> None:
    streams = [torch.cuda.Stream() for _ in range(3)]
    with pertoken.profile(Model().cuda(), activation_every=1) as prof:
        for i in range(300):
            with torch.cuda.stream(streams[i % 3]):
                tensor = torch.full((10_007,), float(i), device="cuda")
                pertoken.observe("value", tensor)
                tensor.fill_(-1.0)
                del tensor
    profile = prof.result()
    table = profile.activations
    skipped = sum(profile.losses["observations_skipped"].values())
    assert len(table) + skipped == 300
    assert (table["min"] == table["max"]).all()
    assert (table["min"] >= 0).all()
    assert (table["count"] == 10_007).all()


def test_replays_are_observed_and_switched_without_a_new_capture() -> None:
    x = torch.ones(1000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pertoken.profile(Model().cuda(), activation_every=2) as prof:
        pertoken.observe("before", x)
        with torch.cuda.graph(graph):
            y = x * 2
            pertoken.observe("inside", y)
            y += 1  # over what was observed
        for i in range(STEPS):
            x.fill_(float(i))
            with pertoken.step("decode"):
                graph.replay()
    profile = prof.result()
    assert profile.losses["observations_skipped"] == {}
    inside = profile.activations.where(profile.activations["site"] == "inside")
    assert STEPS // 2 <= len(inside) <= STEPS // 2 + 1
    assert inside["count"].tolist() == [1000] * len(inside)
    replays = profile.steps.where(profile.steps["kind"] == "decode")["step"]
    assert (inside["min"] == 2 * (inside["step"] - replays[0])).all()
    assert (inside["max"] == inside["min"]).all()
    graph.replay()
    torch.cuda.synchronize()
    assert float(y[0]) == 2 * (STEPS - 1) + 1


def test_arrays_of_cupy_and_dlpack() -> None:
    cupy = pytest.importorskip("cupy")
    array = cupy.arange(1000, dtype=cupy.float32)
    with pertoken.profile(Model().cuda(), activation_every=1) as prof:
        pertoken.observe("cupy", array)
    assert prof.result().activations["sum"].tolist() == [499_500]
