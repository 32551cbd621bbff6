"""Kernels that spin for a known time: our spans against torch's events and CUPTI's figures."""

from __future__ import annotations

import numpy as np
import torch

import pertoken

SPIN_CYCLES = 2_000_000  # about a millisecond
CALLS = 50


class Spin(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, device="cuda"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.cuda._sleep(SPIN_CYCLES)
        return x


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spin = Spin()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        torch.cuda._sleep(SPIN_CYCLES)  # so that the module's kernel waits in the queue
        return self.spin(input_ids)


def _device_ns(profile: pertoken.Profile) -> np.ndarray:
    spans = profile.spans
    return spans.where((spans["device"] >= 0) & (spans["site"] == "spin"))["dur_ns"]


def test_spans_agree_with_the_kernels_that_cupti_sees() -> None:
    """To within 1 us and 1 %, in the median."""
    model, x = Model(), torch.zeros(1, 1, device="cuda")
    model(x)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with (
        torch.profiler.profile(activities=activities) as profiler,
        pertoken.profile(model, modules=["spin"], device="cuda") as prof,
    ):
        for _ in range(CALLS):
            model(x)
            torch.cuda.synchronize()
            prof.recorder.drain()  # so that there are events for the next, whatever thread is late
    kernels_us = [e.device_time_total for e in profiler.events() if "spin" in e.name.lower()]
    expected_ns = 1000 * float(np.median(kernels_us))
    assert (
        abs(float(np.median(_device_ns(prof.result()))) - expected_ns) <= 1000 + expected_ns / 100
    )


def test_every_call_is_timed_and_placed_within_the_run() -> None:
    """Nothing is lost, and each step ends on the GPU before the host has waited for it."""
    model, x = Model(), torch.zeros(1, 1, device="cuda")
    with pertoken.profile(model, modules=["spin"], device="cuda") as prof:
        for _ in range(CALLS):
            model(x)
            torch.cuda.synchronize()
            prof.recorder.drain()
    profile = prof.result()
    steps, losses = profile.steps, profile.losses
    assert losses["device_spans_lost"] == {}
    assert len(_device_ns(profile)) == CALLS
    assert (steps["gpu_ns"] > 0).all()
    gpu_end_ns = steps["start_ns"] + steps["launch_lag_ns"] + steps["gpu_ns"]
    assert (gpu_end_ns[:-1] <= steps["start_ns"][1:] + losses["device_clock_error_ns"]).all()
