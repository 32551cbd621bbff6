"""The summary of a profile: what its tables say, as plain data and as something to look at.

Made by `Profile.summary`. `Summary.of` computes; `summary_layout` says it in words; `summary_text`
and `summary_html` put that on a terminal and in a notebook.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pertoken.analysis import latency
from pertoken.analysis.activation_health import first_nonfinite, unhealthy_sites
from pertoken.analysis.device_times import device_times
from pertoken.analysis.distribution import Distribution
from pertoken.analysis.mean_confidence import mean_confidence
from pertoken.analysis.process_names import distinct_names_of
from pertoken.analysis.row_index import rows_of
from pertoken.analysis.since_start import since_start
from pertoken.analysis.site_times import hottest_sites, site_times
from pertoken.analysis.slow_tokens import SlowToken, slowest_tokens
from pertoken.analysis.stragglers import find_stragglers
from pertoken.analysis.token_confidence import UnsureToken, least_confident_tokens
from pertoken.quantity import plural_text
from pertoken.summary_cost import stated_costs

if TYPE_CHECKING:
    import rich.console

    from pertoken.result import Profile


class Summary:
    """Latencies by kind of step, slowest tokens, hottest sites and losses of one profile.

    Print it for a terminal, show it in a notebook, or take `as_dict`. It does not change.
    """

    __slots__ = ("_data",)

    _data: dict[str, Any]

    def __init__(self, data: Mapping[str, Any]) -> None:
        """Keep a copy of what `as_dict` gave."""
        object.__setattr__(self, "_data", copy.deepcopy(dict(data)))

    @classmethod
    def of(cls, profile: Profile, *, tokens: int = 5, sites: int = 5) -> Summary:
        """Summarise a profile.

        Args:
            profile: what was recorded.
            tokens: how many of the slowest tokens to give, and of the least confident ones.
            sites: how many of the hottest sites to give for each kind of step.
        """
        times = site_times(profile)
        meta = profile.meta
        requests = profile.requests
        failed = requests["error"] != ""
        running = (requests["end_ns"] < 0) & ~failed
        step_times = latency.step_times(profile)
        committing = dict.fromkeys(_kinds_of_tokens(profile))
        merged = len(profile.processes) > 1
        hottest = hottest_sites(profile, sites, times)
        data: dict[str, Any] = {
            "model": meta.get("model"),
            "device": meta.get("device"),
            "modules": meta.get("modules"),
            "pertoken_version": meta.get("pertoken_version"),
            "duration_ns": meta.get("duration_ns"),
            "requests": {
                "count": len(requests),
                "failed": int(failed.sum()),
                "running": int(running.sum()),
            },
            "steps": _steps(profile),
            "tokens": {
                "count": len(profile.tokens),
                "per_s": latency.tokens_per_s(profile),
            },
            "spans": {"count": len(profile.spans)},
            "ttft": _plain(latency.ttft(profile)),
            "tpot": _plain(latency.tpot(profile)),
            "inter_token": _plain(latency.inter_token(profile)),
            "inter_token_by_kind": {
                kind: _plain(latency.inter_token(profile, kind)) for kind in committing
            },
            "step_times": {
                steps.kind: {
                    "count": steps.count,
                    "time": _plain(steps.time),
                    "tokens_in_per_s": steps.tokens_in_per_s,
                    "tokens_committed_per_s": steps.tokens_committed_per_s,
                }
                for steps in step_times
            },
            "device_times": {
                times.kind: {
                    "count": times.count,
                    "gpu": times.gpu.as_dict(),
                    "launch_lag": times.launch_lag.as_dict(),
                    "idle_share": times.idle_share,
                }
                for times in device_times(profile)
            },
            "slowest_tokens": _slowest(profile, slowest_tokens(profile, tokens, times=times)),
            "confidence": _confidence(profile, tokens),
            "hottest_sites": {
                kind: [
                    {
                        "site": site.site,
                        "category": site.category,
                        "share": site.share,
                        "share_low": site.share_low,
                        "share_high": site.share_high,
                        "self_ns_per_step": round(site.self_ns_per_step),
                        "calls_per_step": site.calls_per_step,
                    }
                    for site in ranked
                ]
                for kind, ranked in hottest.items()
            },
            "activations": _activations(profile),
            "cost": stated_costs(profile),
            "processes": _processes(profile),
            "stragglers": find_stragglers(profile).as_dict() if merged else None,
            "since_start": since_start(profile),
            "trigger": profile.meta.get("trigger"),
            "losses": {k: v for k, v in profile.losses.items() if k != "processes"},
        }
        return cls(data)

    def as_dict(self) -> dict[str, Any]:
        """Give the summary as plain data, ready for JSON; durations are integer nanoseconds.

        Keys: ``model`` ``device`` ``modules`` ``pertoken_version`` ``duration_ns`` (from the
        profile's metadata); ``requests`` {count, failed, running}; ``steps`` {count, failed,
        by_kind}, all of them, with how many there are of each kind; ``tokens`` {count, per_s};
        ``spans`` {count}; ``ttft``, ``tpot``, ``inter_token``: {count, mean_ns, p50_ns, p90_ns,
        p99_ns, max_ns} or None when there is nothing to measure; ``inter_token_by_kind`` the same
        by the kind of the committing step; ``step_times`` by kind, of the steps that ended without
        an exception: {count, time, tokens_in_per_s, tokens_committed_per_s}; ``device_times`` by
        kind, for steps timed on a GPU: {count, gpu, launch_lag, idle_share}; ``slowest_tokens``, a
        list of {step, request, request_id, row, position, kind, tokens, itl_ns, median_itl_ns,
        extra_ns, contributors: [{site, category, own_ns, median_ns, extra_ns}]}; ``confidence``,
        None where no logits were read: {tokens, means, least_confident_tokens: [{step, request,
        request_id, row, position, kind, top1_prob, margin, entropy, logprob}]}, where ``means`` has
        estimates for all tokens by kind: {steps, tokens (both: that were read), top1_prob, margin,
        entropy, logprob, perplexity}, the signals None or {tokens, mean, low, high} (see
        `SignalMean`), perplexity exp(-mean logprob) or None; ``hottest_sites`` by kind, a list of
        {site, category, share, share_low, share_high (the interval of 95 %, where steps were
        sampled; None where too few were to say), self_ns_per_step, calls_per_step};
        ``activations``, None where nothing was observed: {observations, sites, first_nonfinite:
        None or {site, step, token}, unhealthy_sites: [{site, observations, nans, infs, saturated,
        dead, share}]} (see `SiteHealth`); ``cost``, what each process states of that of its
        recording, a list of {process, budget, share, low, high, pairs, rates}; ``processes``, a
        list of {process, name, start_ns, end_ns, clock_basis, clock_offset_ns, clock_error_ns};
        ``stragglers`` as of `Stragglers.as_dict`, None unless the profile was merged;
        ``since_start``, None unless something was evicted: counts and latencies of the whole run by
        the same keys, from `Profile.totals`; ``trigger``, what made the recording dump this, None
        unless it did; ``losses`` as in the profile, those of all processes together. The root
        module is the site named by the empty string.
        """
        return copy.deepcopy(self._data)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: a summary does not change."""
        raise AttributeError(f"a Summary does not change: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        """Refuse: a summary does not change."""
        raise AttributeError(f"a Summary does not change: {name} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the data."""
        return Summary, (self._data,)

    def __eq__(self, other: object) -> bool:
        """Compare the data."""
        return self._data == other._data if isinstance(other, Summary) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # its data is not hashable

    def __repr__(self) -> str:
        """Say what is summarised; `str` gives the summary itself."""
        counts = ", ".join(
            plural_text(self._data[f"{noun}s"]["count"], noun)
            for noun in ("request", "step", "token")
        )
        return f"<Summary of {counts}; print() shows it>"

    def __str__(self) -> str:
        """Render for a terminal, as wide as it is, without colour."""
        from pertoken.summary_text import summary_text

        return summary_text(self._data)

    def __rich__(self) -> rich.console.Group:
        """Render for a rich console."""
        from pertoken.summary_layout import summary_blocks
        from pertoken.summary_text import rich_group

        return rich_group(summary_blocks(self._data))

    def _repr_html_(self) -> str:
        from pertoken.summary_html import summary_html

        return summary_html(self._data)


def _steps(profile: Profile) -> dict[str, Any]:
    steps = profile.steps
    return {
        "count": len(steps),
        "failed": int((steps["error"] != "").sum()),
        "by_kind": dict(Counter(steps["kind"].tolist())),
    }


def _activations(profile: Profile) -> dict[str, Any] | None:
    observed = profile.activations
    if not len(observed):
        return None
    first = first_nonfinite(profile)
    return {
        "observations": len(observed),
        "sites": len(np.unique(observed.codes("site"))),
        "first_nonfinite": None if first is None else first._asdict(),
        "unhealthy_sites": [asdict(site) for site in unhealthy_sites(profile)],
    }


def _plain(distribution: Distribution | None) -> dict[str, int] | None:
    return None if distribution is None else distribution.as_dict()


def _processes(profile: Profile) -> list[dict[str, Any]]:
    """Describe the processes, and how their clocks were joined."""
    table = profile.processes
    keys = ("process", "start_ns", "end_ns", "clock_basis", "clock_offset_ns", "clock_error_ns")
    rows = zip(*(table[key].tolist() for key in keys), strict=True)
    return [
        {"name": name, **dict(zip(keys, row, strict=True))}
        for name, row in zip(distinct_names_of(profile), rows, strict=True)
    ]


def _kinds_of_tokens(profile: Profile) -> list[str]:
    """List the kinds of the steps that committed a token which has an inter-token latency."""
    tokens, steps = profile.tokens, profile.steps
    row = rows_of(steps["step"], tokens["step"])
    return [str(kind) for kind in steps["kind"][row[(row >= 0) & (tokens["itl_ns"] >= 0)]]]


def _slowest(profile: Profile, found: tuple[SlowToken, ...]) -> list[dict[str, Any]]:
    data = _named(profile, found)
    for token in data:
        token["contributors"] = list(token["contributors"])
    return data


def _confidence(profile: Profile, count: int) -> dict[str, Any] | None:
    tokens = int(np.isfinite(profile.tokens["top1_prob"]).sum())
    if tokens == 0:
        return None
    found = _named(profile, least_confident_tokens(profile, count))
    means = {}
    for of_kind in mean_confidence(profile):
        means[of_kind.kind] = asdict(of_kind)
        del means[of_kind.kind]["kind"]
    return {"tokens": tokens, "means": means, "least_confident_tokens": found}


def _named(
    profile: Profile, found: tuple[SlowToken, ...] | tuple[UnsureToken, ...]
) -> list[dict[str, Any]]:
    """Tokens as plain data, with the name of their request."""
    requests = profile.requests
    names = dict(zip(requests["request"].tolist(), requests["id"].tolist(), strict=True))
    return [{**asdict(token), "request_id": names.get(token.request, "")} for token in found]
