"""How sure the model was on average: means of the signals of logits, by the kind of step.

Logits are read in some of the steps, so what is known of the tokens that were read is an estimate
for all of them. Steps are sampled, not tokens: all of a step are read or none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pertoken.analysis.distribution import usable_weights
from pertoken.analysis.ratio_interval import half_width
from pertoken.analysis.row_index import rows_of
from pertoken.result import Profile
from pertoken.schema import SIGNALS
from pertoken.table import Array

_LARGEST_EXPONENT = 700.0  # of what a float64 holds
_BOUNDS = {
    "top1_prob": (0.0, 1.0),
    "margin": (0.0, 1.0),
    "entropy": (0.0, math.inf),
    "logprob": (-math.inf, 0.0),
}


@dataclass(frozen=True)
class SignalMean:
    """The mean of a signal over all tokens, estimated from those of which it is known.

    Attributes:
        tokens: of how many it is known.
        mean: the sum of weight times value over the sum of the weights (Hájek).
        low: the true mean lies between `low` and `high` in about 95 % of cases; both are the mean
            where no step was left out by sampling, and None where too few were read, or a few
            outweigh the others.
        high: see `low`.
    """

    tokens: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class KindConfidence:
    """How sure the model was of the tokens that the steps of one kind committed.

    Attributes:
        kind: of the steps.
        steps: how many were read.
        tokens: how many tokens of them were read.
        top1_prob: a probability; this and the others None where nothing is known, or where a value
            is infinite.
        margin: a difference of probabilities.
        entropy: in nats.
        logprob: a natural logarithm.
        perplexity: exp(-mean logprob), of the committed tokens as the logits have them; None where
            it is unknown.
    """

    kind: str
    steps: int
    tokens: int
    top1_prob: SignalMean | None
    margin: SignalMean | None
    entropy: SignalMean | None
    logprob: SignalMean | None
    perplexity: float | None


@dataclass(frozen=True)
class _Sample:
    """Tokens of one kind that were read: `step` is the row of each one's step."""

    step: Array
    weight: Array
    by_coin: Array
    may_be_one_of_many: bool

    def mean(self, values: Array, bounds: tuple[float, float]) -> SignalMean | None:
        known = ~np.isnan(values)
        values = values[known]
        if not len(values) or not np.isfinite(values).all():
            return None
        values = values.astype(np.float64)
        weight = self.weight[known]
        mean = float(np.average(values, weights=weight))
        half = self._half_width(known, weight * (values - mean))
        if half is None:
            return SignalMean(len(values), mean, None, None)
        # A damaged file may have a mean out of the bounds.
        low = max(mean - half, min(bounds[0], mean))
        high = min(mean + half, max(bounds[1], mean))
        return SignalMean(len(values), mean, low, high)

    def _half_width(self, known: Array, weighted_residual: Array) -> float | None:
        """Half of the interval of 95 % of a mean; None where too few steps count.

        A step's residual is the sum of those of its tokens. At a fixed rate, one step of each block
        is read, and where a block's residuals cancel out the usual variance is too little.
        """
        weight = self.weight[known]
        _, first, own = np.unique(self.step[known], return_index=True, return_inverse=True)
        of_step = np.bincount(own, weight)
        step_weight = of_step / np.bincount(own)
        sampled = step_weight > 1
        if not sampled.any() and self.may_be_one_of_many:
            return None
        left_out = sampled * (1 - 1 / step_weight * self.by_coin[known][first])
        return half_width(of_step, np.bincount(own, weighted_residual), left_out)


def mean_confidence(profile: Profile) -> tuple[KindConfidence, ...]:
    """Estimate the means of the signals over all tokens, for each kind of step that was read.

    A token was read where its `top1_prob` is finite. Those of evicted steps and without a usable
    weight are left out. Kinds come in the order of their first steps.

    Args:
        profile: what was recorded.
    """
    tokens, steps = profile.tokens, profile.steps
    at_step = rows_of(steps["step"], tokens["step"])
    weights = usable_weights(tokens["logits_weight"], len(tokens))
    is_read = np.isfinite(tokens["top1_prob"])
    names, kind_of_step = _kinds(profile)
    by_coin = np.isin(steps["process"], _sampling_processes(profile))
    unread = at_step[(at_step >= 0) & ~is_read]
    has_unread = np.bincount(kind_of_step[unread], minlength=len(names)) > 0

    read = np.flatnonzero(is_read & (at_step >= 0) & (weights > 0))
    kinds = kind_of_step[at_step[read]]
    order = np.argsort(kinds, kind="stable")
    found, begin = np.unique(kinds[order], return_index=True)
    result = []
    for kind, chosen in zip(found.tolist(), np.split(read[order], begin[1:]), strict=False):
        rows = np.unique(at_step[chosen])
        sample = _Sample(
            step=at_step[chosen],
            weight=weights[chosen].astype(np.float64),
            by_coin=by_coin[at_step[chosen]],
            # At a fixed rate the first step of a process is always read, with weight 1.
            may_be_one_of_many=bool(has_unread[kind])
            and len(rows) <= len(np.unique(steps["process"][rows])),
        )
        means = {name: sample.mean(tokens[name][chosen], _BOUNDS[name]) for name in SIGNALS}
        logprob = means["logprob"]
        result.append(
            KindConfidence(
                kind=names[kind],
                steps=len(rows),
                tokens=len(chosen),
                **means,
                perplexity=None if logprob is None else _perplexity(logprob.mean),
            )
        )
    return tuple(result)


def _perplexity(logprob: float) -> float | None:
    return math.exp(-logprob) if -logprob <= _LARGEST_EXPONENT else None


def _kinds(profile: Profile) -> tuple[list[str], Array]:
    """Name the kinds of steps, in the order of their first ones, and number that of each step."""
    strings = profile.steps.strings
    codes, first, own = np.unique(
        profile.steps.codes("kind"), return_index=True, return_inverse=True
    )
    numbers: dict[str, int] = {}
    of_code = np.zeros(len(codes), dtype=np.int64)
    for place in np.argsort(first).tolist():
        code = int(codes[place])
        # numpy's text ends before the null characters at its end.
        text = "" if code < 0 else strings[code].rstrip("\0")
        of_code[place] = numbers.setdefault(text, len(numbers))
    return list(numbers), of_code[own]


def _sampling_processes(profile: Profile) -> list[int]:
    """List the processes with a budget, where each step is decided by a coin of its own."""
    found = []
    for process, meta in enumerate(profile.meta.get("processes") or [profile.meta]):
        cost = meta.get("cost") if isinstance(meta, Mapping) else None
        if isinstance(cost, Mapping) and isinstance(cost.get("budget"), (int, float)):
            found.append(process)
    return found
