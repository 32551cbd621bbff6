"""What a summary says of a long run, whose oldest steps are no longer in the profile."""

from __future__ import annotations

from typing import Any

from pertoken.analysis.distribution import Distribution
from pertoken.histogram import Histogram
from pertoken.result import Profile

_EVICTED = ("steps_evicted", "spans_evicted", "requests_evicted")


def since_start(profile: Profile) -> dict[str, Any] | None:
    """Counts and latencies of the whole run, from its totals; None where the tables hold it all.

    Returns:
        ``requests`` {count, failed, running}, ``steps`` {count, failed, by_kind}, ``tokens``
        {count}, ``ttft``, ``tpot``, ``inter_token`` and, by kind, ``inter_token_by_kind`` and
        ``step_times`` {count, time}. Latencies have the keys of a summary's; their percentiles are
        estimates, at most 9 % off.
    """
    totals, losses = profile.totals, profile.losses
    if totals is None or not any(losses.get(name) for name in _EVICTED):
        return None
    requests, steps = totals.all_requests, totals.all_steps
    return {
        "requests": {
            "count": requests.started,
            "failed": requests.failed,
            "running": requests.started - requests.finished - requests.failed,
        },
        "steps": {
            "count": steps.begun,
            "failed": steps.failed,
            "by_kind": {kind: of_kind.begun for kind, of_kind in totals.steps.items()},
        },
        "tokens": {"count": steps.tokens_committed},
        "ttft": _latency(requests.ttft_ns),
        "tpot": _latency(requests.tpot_ns),
        "inter_token": _latency(steps.itl_ns),
        "inter_token_by_kind": {
            kind: _latency(of_kind.itl_ns)
            for kind, of_kind in totals.steps.items()
            if of_kind.itl_ns.count
        },
        "step_times": {
            kind: {"count": of_kind.begun, "time": _latency(of_kind.wall_ns)}
            for kind, of_kind in totals.steps.items()
        },
    }


def _latency(times_ns: Histogram) -> dict[str, int] | None:
    if not times_ns.count:
        return None
    p50_ns, p90_ns, p99_ns = (round(times_ns.quantile(q)) for q in (0.5, 0.9, 0.99))
    distribution = Distribution(
        count=times_ns.count,
        mean_ns=round(times_ns.mean),
        p50_ns=p50_ns,
        p90_ns=p90_ns,
        p99_ns=p99_ns,
        max_ns=round(times_ns.max),
    )
    return distribution.as_dict()
