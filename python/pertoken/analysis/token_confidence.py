"""What the logits said of committed tokens: the least confident ones, and each step's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pertoken.analysis.row_index import rows_of
from pertoken.result import Profile
from pertoken.schema import SIGNALS
from pertoken.table import Array


@dataclass(frozen=True)
class UnsureToken:
    """A token of whose distribution no outcome was probable; None where a number is unknown."""

    step: int
    request: int
    row: int
    position: int
    kind: str
    top1_prob: float
    margin: float | None
    entropy: float | None
    logprob: float | None


def least_confident_tokens(profile: Profile, count: int = 5) -> tuple[UnsureToken, ...]:
    """Find the tokens with the lowest `top1_prob`, lowest first, of those whose logits were read.

    Of equal ones the first in the table comes first. Tokens of evicted steps are left out.

    Args:
        profile: what was recorded.
        count: tokens to give.
    """
    tokens, steps = profile.tokens, profile.steps
    at_step = rows_of(steps["step"], tokens["step"])
    read = np.flatnonzero(np.isfinite(tokens["top1_prob"]) & (at_step >= 0))
    order = np.argsort(tokens["top1_prob"][read], kind="stable")
    chosen = read[order[: max(count, 0)]]
    numbers = {name: [_known(value) for value in tokens[name][chosen]] for name in SIGNALS[1:]}
    return tuple(
        UnsureToken(
            step=int(tokens["step"][token]),
            request=int(tokens["request"][token]),
            row=int(tokens["row"][token]),
            position=int(tokens["position"][token]),
            kind=str(steps["kind"][at_step[token]]),
            top1_prob=float(tokens["top1_prob"][token]),
            **{name: values[index] for name, values in numbers.items()},
        )
        for index, token in enumerate(chosen.tolist())
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def confidence_by_step(profile: Profile) -> dict[str, Array]:
    """The signals of the least confident token that each step committed.

    Returns:
        ``time_ns`` int64, when it was committed, ``process`` int32, and ``top1_prob``, ``margin``,
        ``entropy``, ``logprob`` float64, of one token; one entry a step whose logits were read,
        in the order of the steps.
    """
    tokens, steps = profile.tokens, profile.steps
    at_step = rows_of(steps["step"], tokens["step"])
    read = np.flatnonzero(np.isfinite(tokens["top1_prob"]) & (at_step >= 0))
    read = read[np.lexsort((tokens["top1_prob"][read], at_step[read]))]
    least = read[np.flatnonzero(np.diff(at_step[read], prepend=-1))]
    return {
        "time_ns": tokens["commit_ns"][least],
        "process": steps["process"][at_step[least]],
        **{name: tokens[name][least].astype(np.float64) for name in SIGNALS},
    }
