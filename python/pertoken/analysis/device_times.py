"""How long steps took on the GPU, and how long it waited for the host meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from pertoken.analysis.distribution import Distribution, usable_weights
from pertoken.analysis.latency import finished
from pertoken.result import Profile


@dataclass(frozen=True)
class DeviceTimes:
    """Steps of one kind that were timed on a GPU and did not fail.

    `idle_share` is the sum of `gpu_idle_ns` over that of `gpu_ns`, weighted by sample_weight: at
    most so much of its time in the steps the GPU waited for the host.
    """

    kind: str
    count: int
    gpu: Distribution
    launch_lag: Distribution
    idle_share: float


def device_times(profile: Profile) -> tuple[DeviceTimes, ...]:
    """Describe, kind by kind in order of appearance, the steps that were timed on a GPU."""
    steps = profile.steps
    kinds = steps["kind"]
    weights = usable_weights(steps["sample_weight"], len(steps))
    timed = finished(profile) & (steps["gpu_ns"] >= 0) & (weights > 0)
    result = []
    for kind in dict.fromkeys(kinds[timed].tolist()):
        chosen = timed & (kinds == kind)
        used = weights[chosen]
        gpu = Distribution.of(steps["gpu_ns"][chosen], used)
        launch_lag = Distribution.of(steps["launch_lag_ns"][chosen], used)
        assert gpu is not None and launch_lag is not None
        spent_ns = float((steps["gpu_ns"][chosen] * used).sum())
        idle_ns = float((steps["gpu_idle_ns"][chosen] * used).sum())
        share = idle_ns / spent_ns if spent_ns > 0 else 0.0
        result.append(DeviceTimes(kind, int(chosen.sum()), gpu, launch_lag, share))
    return tuple(result)
