"""The time on a GPU, by a driver that is not one: spans, steps and losses."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest
import torch

import invariants
import pertoken
from fake_gpu import FakeGpu, fake_gpu, put_on
from pertoken import DeviceError, SelectionError, _native
from waiting import wait_for

KERNEL_NS = 2_000_000
# Of placing what the host took seconds to get to, by a rate that is known to some parts in 1000.
LARGEST_ERROR_NS = 100_000_000


class Block(torch.nn.Module):
    """One kernel of 2 ms on its device."""

    def __init__(self, gpu: FakeGpu, device: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.gpu, self.device = gpu, device
        put_on(self, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.gpu.spin(KERNEL_NS, self.device)
        return x * self.weight


class Model(torch.nn.Module):
    def __init__(self, gpu: FakeGpu, devices: tuple[int, ...] = (0, 0, 0)) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Block(gpu, device) for device in devices)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = input_ids.float()
        for layer in self.layers:
            x = layer(x)
        return x


IDS = torch.zeros(1, 4, dtype=torch.long)


def run(model: torch.nn.Module, steps: int, **options: object) -> pertoken.Profile:
    with pertoken.profile(model, modules=["layers.*"], **options) as prof:  # type: ignore[arg-type]
        for _ in range(steps):
            with model.layers[0].gpu.busy():
                model(IDS)
    return prof.result()


def test_spans_and_steps_have_their_time_on_the_gpu(gpu: FakeGpu) -> None:
    profile = run(Model(gpu), 5)
    invariants.check(profile)
    spans, steps = profile.spans, profile.steps
    layers = spans.where((spans["device"] == 0) & (spans["site"] != "Model"))
    assert len(layers) == 15
    assert (np.abs(layers["dur_ns"] - KERNEL_NS) < KERNEL_NS // 10).all()
    assert (np.abs(steps["gpu_ns"] - 3 * KERNEL_NS) < 3 * KERNEL_NS // 10).all()
    # The host is done when the GPU begins.
    error_ns = profile.losses["device_clock_error_ns"]
    assert (steps["launch_lag_ns"] + error_ns >= steps["wall_ns"]).all()
    assert (steps["gpu_idle_ns"] >= 0).all()
    assert (steps["gpu_idle_ns"] <= steps["gpu_ns"]).all()
    assert profile.losses["device_spans_lost"] == {}
    assert 0 < error_ns < LARGEST_ERROR_NS
    roots = spans.where((spans["device"] == 0) & (spans["site"] == "Model"))
    assert set(layers["parent"].tolist()) == set(roots["span"].tolist())


def test_each_device_has_its_own_spans_and_the_step_lasts_over_all(gpu: FakeGpu) -> None:
    profile = run(Model(gpu, (0, 1, 1)), 3)
    invariants.check(profile)
    spans = profile.spans
    on_second = spans.where((spans["device"] == 1) & (spans["site"] != "Model"))
    assert sorted(set(on_second["site"].tolist())) == ["layers.1", "layers.2"]
    assert set(spans.where(spans["device"] == 0)["site"].tolist()) == {"Model", "layers.0"}
    assert (profile.steps["gpu_ns"] >= 1.9 * KERNEL_NS).all()


def test_regions_and_declared_steps_are_timed_too(gpu: FakeGpu) -> None:
    model = Model(gpu)
    with pertoken.profile(model, modules="root") as prof:
        with pertoken.span("before"):
            gpu.spin(KERNEL_NS)
        with pertoken.step("decode"):  # as the replay of a graph, without a call of the model
            gpu.spin(KERNEL_NS)
    profile = prof.result()
    regions = profile.spans.where(profile.spans["device"] == 0)
    assert regions["site"].tolist() == ["before"]
    assert regions["dur_ns"][0] >= 0.99 * KERNEL_NS
    assert profile.steps["gpu_ns"][0] >= 0.99 * KERNEL_NS


def test_a_result_says_what_the_gpu_has_not_come_to(gpu: FakeGpu) -> None:
    model = Model(gpu)
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        gpu.library.fake_hold(None, 0)
        model(IDS)
        early = prof.result()
        gpu.library.fake_release(None, 0)
    assert early.losses["device_spans_pending"] == 4
    assert early.losses["device_spans_lost"] == {}
    assert "4 spans on the GPU were still under way" in " ".join(early.losses["reasons"])
    profile = prof.result()
    assert profile.losses["device_spans_pending"] == 0
    assert profile.losses["device_spans_lost"] == {}
    assert pertoken.merge([early]).losses["device_spans_pending"] == 4


def test_a_capture_is_left_alone_and_said(gpu: FakeGpu) -> None:
    model = Model(gpu)
    stream = gpu.library.fake_new_stream(0)
    gpu.streams[0] = stream
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        model(IDS)
        gpu.library.fake_begin_capture(ctypes.c_void_p(stream))
        model(IDS)
        gpu.library.fake_end_capture(ctypes.c_void_p(stream))
    profile = prof.result()
    assert profile.steps["gpu_ns"][1] == -1
    # Where there are kernels, the calls are stamped into the graph instead: test_graph_replays.py.
    has_kernels = _native.build_info()["cuda_kernels"] != "none"
    assert profile.losses["device_spans_lost"] == ({} if has_kernels else {"in_capture": 4})
    said = any("captured into a graph" in reason for reason in profile.losses["reasons"])
    assert said != has_kernels


def test_an_error_of_the_gpu_ends_the_timing_and_not_the_model(gpu: FakeGpu) -> None:
    model = Model(gpu)
    expected = model(IDS)
    with pertoken.profile(model, modules=["layers.*"]) as prof:
        model(IDS)
        wait_for(lambda: (prof.result().spans["device"] == 0).sum() == 4)
        gpu.library.fake_break(700)
        assert torch.equal(model(IDS), expected)
    profile = prof.result()
    assert len(profile.steps) == 2
    assert profile.losses["device_spans_lost"]["failed"] == 4
    assert any("ILLEGAL_ADDRESS" in reason for reason in profile.losses["reasons"])
    gpu.library.fake_break(0)


def test_an_exception_in_a_module_passes_through_with_its_times(gpu: FakeGpu) -> None:
    class Failing(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise ZeroDivisionError

    model = Model(gpu)
    model.layers[1] = Failing(gpu, 0)
    with pertoken.profile(model, modules=["layers.*"]) as prof, pytest.raises(ZeroDivisionError):
        model(IDS)
    profile = prof.result()
    assert profile.spans.where(profile.spans["device"] == 0)["site"].tolist() == [
        "layers.0",
        "layers.1",
        "Model",
    ]
    assert profile.steps["gpu_ns"][0] >= 1.9 * KERNEL_NS


def test_files_summaries_and_traces_hold_the_times(gpu: FakeGpu, tmp_path: object) -> None:
    profile = run(Model(gpu), 3)
    path = f"{tmp_path}/run.pertoken"
    profile.save(path)
    loaded = pertoken.load(path)
    assert loaded.steps["gpu_ns"].tolist() == profile.steps["gpu_ns"].tolist()
    text = str(loaded.summary())
    assert "on GPU" in text
    assert "Times on the GPU are placed" in text
    loaded.export_chrome_trace(f"{tmp_path}/trace.json")
    with open(f"{tmp_path}/trace.json") as file:
        assert "on device 0" in file.read()
    merged = pertoken.merge([profile])
    assert merged.losses["device_clock_error_ns"] == profile.losses["device_clock_error_ns"]


def test_it_can_be_switched_off(gpu: FakeGpu) -> None:
    profile = run(Model(gpu), 1, device="off")
    assert (profile.spans["device"] == -1).all()
    assert profile.steps["gpu_ns"].tolist() == [-1]
    assert "device_spans_lost" not in profile.losses


def test_a_model_without_a_gpu_has_no_times_and_says_nothing() -> None:
    model = torch.nn.Linear(2, 2)
    with pertoken.profile(model, modules="root") as prof:
        model(torch.zeros(1, 2))
    profile = prof.result()
    assert profile.steps["gpu_ns"].tolist() == [-1]
    assert not any("GPU" in reason for reason in profile.losses["reasons"])
    assert "device_clock_error_ns" not in profile.losses


def test_a_gpu_asked_for_by_name_must_be_there() -> None:
    with pytest.raises(DeviceError, match="CUDA device"):
        pertoken.profile(torch.nn.Linear(2, 2), modules="root", device="cuda").start()
    with pytest.raises(SelectionError, match="'auto', 'cuda', 'off'"):
        pertoken.profile(torch.nn.Linear(2, 2), device="gpu")  # type: ignore[arg-type]


def test_nothing_is_left_when_the_recording_is_gone(gpu: FakeGpu) -> None:
    model = Model(gpu)
    prof = pertoken.profile(model, modules=["layers.*"])
    for _ in range(3):
        with prof:
            model(IDS)
    assert gpu.library.fake_live_events() > 0
    started = len(prof.result().spans)
    assert started == 3 * 8
    del prof
    gc.collect()
    assert gpu.library.fake_live_events() == 0


def test_a_recording_that_outlives_its_gpu_does_not_disturb_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fake_gpu(monkeypatch) as first:
        prof = pertoken.profile(Model(first), modules=["layers.*"])
        with prof:
            prof.model(IDS)
        assert first.library.fake_live_events() > 0
    with fake_gpu(monkeypatch) as second:
        assert len(run(Model(second), 1, device="cuda").spans) == 8
        before = second.library.fake_live_events()
        del prof
        gc.collect()
        assert second.library.fake_live_events() <= before
        assert second.library.fake_misuses() == 0
