"""Latencies of requests, tokens and steps, each by the words of the documentation.

Steps of different kinds are never put into one distribution of step times. Every step is timed,
whatever was recorded inside it, so that each counts once: none of this is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pertoken.analysis.distribution import Distribution
from pertoken.analysis.row_index import rows_of
from pertoken.result import Profile
from pertoken.table import Array

NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class StepTimes:
    """Steps of one kind: how long they took and what they got through.

    `count` is the number of steps that finished without an exception; `time` their durations on
    the host. The rates are tokens fed to and committed by these
    steps for each second spent in them, over the steps whose count is known; None when none is.
    """

    kind: str
    count: int
    time: Distribution | None
    tokens_in_per_s: float | None
    tokens_committed_per_s: float | None


def ttft_ns(profile: Profile) -> Array:
    """Time to first token of each request: from the entry to the first commit.

    Returns:
        int64, shape (requests,), nanoseconds; -1 for a request that committed nothing or that an
        exception ended. Requests still running count, once they committed a token.
    """
    requests = profile.requests
    failed = requests["error"] != ""
    return np.where(failed | (requests["ttft_ns"] < 0), -1, requests["ttft_ns"])


def tpot_ns(profile: Profile) -> Array:
    """Time per output token of each request: ``(duration - TTFT) / (n - 1)``.

    The duration is that of the request, from entry to exit. n is `output_len`: the tokens of its
    longest row, since all rows run side by side until that one ends, and of several calls of
    generate() one after the other. It is not inter-token latency, which is between single commits.

    Returns:
        float64, shape (requests,), nanoseconds; NaN for a request that still runs, that an
        exception ended, whose n is unknown or below 2, or whose tokens were all committed at one
        moment, where a time per token would mean nothing.
    """
    requests, tokens = profile.requests, profile.tokens
    row = rows_of(requests["request"], tokens["request"])
    known = row >= 0
    never = np.iinfo(np.int64).max
    last_ns = np.full(len(requests), -1)
    np.maximum.at(last_ns, row[known], tokens["commit_ns"][known])
    last_ns[last_ns < 0] = never  # its tokens are no longer held

    length, first_ns = requests["output_len"], ttft_ns(profile)
    start_ns, end_ns = requests["start_ns"], requests["end_ns"]
    defined = (end_ns >= 0) & (first_ns >= 0) & (length >= 2) & (requests["error"] == "")
    defined &= last_ns > start_ns + first_ns
    remaining_ns = end_ns - start_ns - first_ns
    result = np.full(len(requests), np.nan)
    result[defined] = remaining_ns[defined] / (length[defined] - 1)
    return result


def ttft(profile: Profile) -> Distribution | None:
    """Distribution of `ttft_ns` over requests; None when no request has one."""
    values_ns = ttft_ns(profile)
    return Distribution.of(values_ns[values_ns >= 0])


def tpot(profile: Profile) -> Distribution | None:
    """Distribution of `tpot_ns` over requests; None when no request has one."""
    values_ns = tpot_ns(profile)
    return Distribution.of(values_ns[~np.isnan(values_ns)])


def inter_token(profile: Profile, kind: str | None = None) -> Distribution | None:
    """Distribution of inter-token latency over tokens; None when no token has one.

    Inter-token latency is between two commits of one sequence, so its first token has none.

    Args:
        profile: what was recorded.
        kind: only tokens committed by steps of this kind; all of them when not given.
    """
    tokens, steps = profile.tokens, profile.steps
    kept = tokens["itl_ns"] >= 0
    if kind is not None:
        row = rows_of(steps["step"], tokens["step"])
        kept &= (row >= 0) & np.append(steps["kind"] == kind, False)[row]
    return Distribution.of(tokens["itl_ns"][kept])


def finished(profile: Profile) -> Array:
    """Tell which steps ended, and without an exception: bool, shape (steps,)."""
    steps = profile.steps
    return np.asarray((steps["wall_ns"] >= 0) & (steps["error"] == ""))


def step_times(profile: Profile) -> tuple[StepTimes, ...]:
    """Describe the steps of each kind that occurs, kind by kind, in order of appearance."""
    steps = profile.steps
    whole = finished(profile)
    kinds = steps["kind"]
    result = []
    for kind in dict.fromkeys(kinds.tolist()):
        chosen = whole & (kinds == kind)
        result.append(
            StepTimes(
                kind=kind,
                count=int(chosen.sum()),
                time=Distribution.of(steps["wall_ns"][chosen]),
                tokens_in_per_s=_rate(profile, "tokens_in", chosen),
                tokens_committed_per_s=_rate(profile, "tokens_committed", chosen),
            )
        )
    return tuple(result)


def tokens_per_s(profile: Profile) -> float | None:
    """Tokens committed a second, from the start of the first step to the last commit.

    Time in which nothing ran is included. None when no token was committed.
    """
    tokens, steps = profile.tokens, profile.steps
    if len(tokens) == 0 or len(steps) == 0:
        return None
    elapsed_ns = int(tokens["commit_ns"].max()) - int(steps["start_ns"].min())
    return len(tokens) * NS_PER_S / elapsed_ns if elapsed_ns > 0 else None


def _rate(profile: Profile, column: str, chosen: Array) -> float | None:
    counts = profile.steps[column]
    counted = chosen & (counts >= 0)
    spent_ns = float(profile.steps["wall_ns"][counted].sum(dtype=np.float64))
    made = float(counts[counted].sum(dtype=np.float64))
    return made * NS_PER_S / spent_ns if spent_ns > 0 else None
