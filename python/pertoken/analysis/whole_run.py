"""The counts and latencies of a whole run from its totals, where the tables hold only its end.

Given in the form in which a summary gives those of the tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pertoken.analysis.distribution import Distribution
from pertoken.analysis.latency import NS_PER_S
from pertoken.histogram import Histogram
from pertoken.result import Profile
from pertoken.schema import STEP_KINDS
from pertoken.totals import StepTotals, Totals


def whole_run(profile: Profile) -> dict[str, Any] | None:
    """Describe everything since the start; None where the tables hold all of it.

    Returns:
        ``requests``, ``steps``, ``tokens``, ``ttft``, ``tpot``, ``inter_token``,
        ``inter_token_by_kind`` and ``step_times``, as in `Summary.as_dict`. Percentiles are
        estimates, from histogram buckets 9 % wide; ``tokens.per_s`` is over the whole recording.
    """
    totals = profile.totals
    if totals is None or not profile.losses.get("steps_evicted"):
        return None
    requests = totals.requests_with()
    kinds = [kind for kind in (*STEP_KINDS, *totals.steps) if kind in totals.steps]
    steps = {kind: totals.steps[kind] for kind in dict.fromkeys(kinds)}
    return {
        "requests": {
            "count": requests.started,
            "failed": requests.failed,
            "running": requests.started - requests.finished - requests.failed,
        },
        "steps": {"count": sum(of_kind.begun for of_kind in steps.values())},
        "tokens": _tokens(profile, totals),
        "ttft": _described(requests.ttft_ns),
        "tpot": _described(requests.tpot_ns),
        "inter_token": _described(_merged(of_kind.itl_ns for of_kind in steps.values())),
        "inter_token_by_kind": {
            kind: _described(of_kind.itl_ns)
            for kind, of_kind in steps.items()
            if of_kind.itl_ns.count
        },
        "step_times": {kind: _step_times(of_kind) for kind, of_kind in steps.items()},
    }


def _tokens(profile: Profile, totals: Totals) -> dict[str, Any]:
    count = sum(of_kind.tokens_committed for of_kind in totals.steps.values())
    duration_ns = profile.meta.get("duration_ns")
    return {"count": count, "per_s": _rate(count, duration_ns or 0)}


def _step_times(steps: StepTotals) -> dict[str, Any]:
    return {
        "count": steps.wall_ns.count,
        "time": _described(steps.wall_ns),
        "tokens_in_per_s": _rate(steps.tokens_in, steps.wall_ns.sum),
        "tokens_committed_per_s": _rate(steps.tokens_committed, steps.wall_ns.sum),
    }


def _rate(count: int, spent_ns: float) -> float | None:
    return count * NS_PER_S / spent_ns if count and spent_ns > 0 else None


def _merged(histograms: Iterable[Histogram]) -> Histogram:
    return sum(histograms, Histogram())


def _described(histogram: Histogram) -> dict[str, int] | None:
    if not histogram.count:
        return None
    return Distribution(
        count=histogram.count,
        mean_ns=round(histogram.mean),
        p50_ns=round(histogram.quantile(0.5)),
        p90_ns=round(histogram.quantile(0.9)),
        p99_ns=round(histogram.quantile(0.99)),
        max_ns=round(histogram.max),
    ).as_dict()
