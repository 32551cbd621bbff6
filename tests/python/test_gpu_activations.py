"""Observing tensors on a GPU that is not one: the same numbers as on the processor, or counted.

The fake driver runs the statistics kernel's own arithmetic on the host's memory.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest
import torch

import invariants
import pertoken
from fake_gpu import FakeGpu, on_gpu, put_on
from pertoken import _native
from waiting import wait_for

pytestmark = pytest.mark.skipif(
    _native.build_info()["cuda_kernels"] == "none", reason="built without kernels"
)

EXACT = ("step", "row", "count", "zeros", "nans", "pos_infs", "neg_infs", "min", "max", "weight")


class Layer(torch.nn.Module):
    """Puts out its input, as it is told, on its GPU or on the host."""

    def __init__(self, device: int | None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.device = device
        self.held: list[torch.Tensor] = []
        if device is not None:
            put_on(self, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.device is None:
            return x.clone()
        self.held.append(on_gpu(x.clone(), self.device))
        return self.held[-1]


class Model(torch.nn.Module):
    def __init__(self, devices: tuple[int | None, ...]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(device) for device in devices)
        self.inputs: list[torch.Tensor] = []  # what each step's layers put out

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = self.inputs.pop(0)
        for layer in self.layers:
            layer(x)
        return input_ids


def run(
    devices: tuple[int | None, ...],
    inputs: list[torch.Tensor],
    mask: torch.Tensor | None = None,
    **options: Any,
) -> pertoken.Profile:
    model = Model(devices)
    model.inputs = list(inputs)
    options.setdefault("activation_every", 1)
    with pertoken.profile(model, activations=["layers.*"], **options) as prof:
        for x in inputs:
            model(torch.zeros(x.shape[:2], dtype=torch.long), attention_mask=mask)
    profile = prof.result()
    invariants.check(profile)
    return profile


def assert_same(ours: pertoken.Profile, theirs: pertoken.Profile) -> None:
    a, b = ours.activations, theirs.activations
    assert a["site"].tolist() == b["site"].tolist()
    assert a["dtype"].tolist() == b["dtype"].tolist()
    for name in EXACT:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for name in ("sum", "sum_sq"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-12)
    for name in ("observation", "sign", "index", "count"):
        ours_of, theirs_of = ours.activation_buckets[name], theirs.activation_buckets[name]
        np.testing.assert_array_equal(ours_of, theirs_of, err_msg=name)


def inputs_of(dtype: torch.dtype, rows: int = 3, positions: int = 5, steps: int = 4) -> Any:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(rows, positions, 40, generator=generator) * 3 for _ in range(steps)]
    made[1][0, 0, :5] = 0
    made[2][1, 1, 1] = math.nan
    if dtype is not torch.float8_e4m3fn:
        made[2][1, 1, 2:4] = math.inf
    return [x.to(dtype) for x in made]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str
)
def test_a_gpu_gives_what_the_processor_gives(gpu: FakeGpu, dtype: torch.dtype) -> None:
    inputs = inputs_of(dtype)
    ours, theirs = run((0, 1), inputs), run((None, None), inputs)
    assert len(ours.activations) == 8
    assert ours.losses["observations_skipped"] == {}
    assert ours.losses["faults"] == {}
    assert_same(ours, theirs)
    assert ours.first_nonfinite() == theirs.first_nonfinite()
    assert ours.first_nonfinite() is not None
    assert "layers.1" in str(ours.summary())  # as a site with NaNs
    at_first = ours.histogram("layers.0", step=0)
    assert at_first.count == theirs.histogram("layers.0", step=0).count


def test_rows_and_padding_are_those_of_the_processor(gpu: FakeGpu) -> None:
    inputs = inputs_of(torch.float32)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    for options in ({}, {"activation_rows": True}):
        for of_step in (None, mask):
            ours = run((0, 0), inputs, of_step, **options)
            theirs = run((None, None), inputs, of_step, **options)
            assert_same(ours, theirs)
            assert ours.losses["observations_skipped"] == {}
    assert len(ours.activations) == 24


def test_sampled_steps_carry_their_weight(gpu: FakeGpu) -> None:
    profile = run((0,), inputs_of(torch.float32, steps=33), activation_every=16)
    assert sorted(set(profile.activations["weight"].tolist())) == [1, 16]
    assert len(profile.activations) == 3


def test_totals_have_what_arrived(gpu: FakeGpu) -> None:
    model = Model((0,))
    model.inputs = inputs_of(torch.bfloat16)
    with pertoken.profile(model, activations=["layers.*"], activation_every=1) as prof:
        for _ in range(4):
            model(torch.zeros(3, 5, dtype=torch.long))
    (of_site,) = prof.totals().activations.values()
    assert of_site.observations == 4
    assert of_site.values.nans == 1


class CudaArray:
    """An array of CuPy, as far as it tells."""

    def __init__(self, values: np.ndarray[Any, Any], stream: int = 0) -> None:
        self.values = values
        self.__cuda_array_interface__ = {
            **values.__array_interface__, "version": 3, "stream": stream,
        }  # fmt: skip

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def test_observe_takes_tensors_and_arrays_on_a_gpu(gpu: FakeGpu) -> None:
    stream = gpu.library.fake_new_stream(0)
    values = np.arange(60, dtype=np.float32).reshape(6, 10)
    tensors = [on_gpu(torch.full((7,), float(i))) for i in range(3)]
    with pertoken.profile(Model((0,)), activation_every=1) as prof:
        for tensor in tensors:
            pertoken.observe("mine", tensor)
        pertoken.observe("cupy", CudaArray(values[:, ::2], stream))
    profile = prof.result()
    table = profile.activations
    assert table["site"].tolist() == ["mine"] * 3 + ["cupy"]
    assert table["max"].tolist() == [0, 1, 2, 58]
    assert table["count"].tolist() == [7, 7, 7, 30]
    assert profile.losses["observations_skipped"] == {}


def test_what_is_on_a_gpu_by_dlpack_is_taken_through_torch(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    given = Elsewhere()
    taken: list[object] = []

    def from_dlpack(value: object) -> torch.Tensor:
        taken.append(value)
        return torch.ones(3)

    monkeypatch.setattr(torch, "from_dlpack", from_dlpack)
    assert pertoken.Histogram.from_values(given).count == 3
    assert taken == [given]


def test_what_cannot_be_read_on_a_gpu_is_said(gpu: FakeGpu) -> None:
    wide, none = torch.ones(3, dtype=torch.float64), torch.ones(0)
    with pertoken.profile(Model((0,)), activation_every=1) as prof:
        pertoken.observe("wide", on_gpu(wide))
        pertoken.observe("none", on_gpu(none))
        pertoken.observe("far", on_gpu(torch.ones(3), 5))
    profile = prof.result()
    assert len(profile.activations) == 0
    skipped = "\n".join(profile.losses["observations_skipped"])
    for text in ("no kernel for float64", "was empty", "no such GPU"):
        assert text in skipped
    assert profile.losses["faults"] == {}
    assert prof.totals().losses["observations_skipped"] == 3


def test_a_capture_is_left_alone_and_counted(gpu: FakeGpu) -> None:
    gpu.streams[0] = stream = gpu.library.fake_new_stream(0)
    held = [on_gpu(torch.ones(4)) for _ in range(2)]
    with pertoken.profile(Model((0,)), activation_every=1) as prof:
        pertoken.observe("before", held[0])
        gpu.library.fake_begin_capture(ctypes.c_void_p(stream))
        pertoken.observe("inside", held[1])
        gpu.library.fake_end_capture(ctypes.c_void_p(stream))
    profile = prof.result()
    assert profile.activations["site"].tolist() == ["before"]
    skipped = profile.losses["observations_skipped"]
    assert skipped == {"the stream was being captured into a CUDA graph": 1}


def test_a_gpu_that_fails_is_counted_and_the_model_runs(gpu: FakeGpu) -> None:
    model = Model((0,))
    model.inputs = inputs_of(torch.float32)
    with pertoken.profile(model, activations=["layers.*"], activation_every=1) as prof:
        for step in range(4):
            if step == 2:
                wait_for(lambda: len(prof.result().activations) == 2)
                gpu.library.fake_break(700)
            model(torch.zeros(3, 5, dtype=torch.long))
    profile = prof.result()
    gpu.library.fake_break(0)
    assert len(profile.activations) == 2
    assert profile.losses["observations_skipped"] == {"the GPU or its context had failed": 2}
    assert any("A GPU failed while it observed" in text for text in profile.losses["reasons"])


def test_results_that_do_not_come_are_waited_for_so_long_and_counted(gpu: FakeGpu) -> None:
    stream = gpu.library.fake_new_stream(0)
    gpu.streams[0] = stream
    held = on_gpu(torch.ones(4))
    with pertoken.profile(Model((0,)), activation_every=1) as prof:
        pertoken.observe("before", held)
        wait_for(lambda: len(prof.result().activations) == 1)
        gpu.library.fake_hold(ctypes.c_void_p(stream), 0)
        pertoken.observe("never", held)
    profile = prof.result()
    assert profile.activations["site"].tolist() == ["before"]
    assert profile.losses["observations_skipped"] == {"the GPU did not come to it in time": 1}
