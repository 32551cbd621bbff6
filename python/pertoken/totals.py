"""Everything that a recording has seen since its start, as an immutable value that merges.

Counts are exact. Latencies are exponential histograms, which add up bucket by bucket, so that the
totals of several recordings or processes are those of all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from pertoken.histogram import Histogram
from pertoken.quantity import plural_text

OTHER = "__other__"  # stands for all sites, or values of labels, beyond the bound on their number
OUTSIDE = "outside"  # the kind of what ran in no step

LabelSet = tuple[tuple[str, str], ...]
"""Names and values of labels, by name; the model's version is among them, under that name."""

T = TypeVar("T")


class SiteKey(NamedTuple):
    """A site, in the steps of one kind.

    Attributes:
        site: name of the module or region; `OTHER` beyond the bound on the number of sites.
        kind: of the steps, or `OUTSIDE`.
        category: ``module``, ``region`` or ``generate``; empty for `OTHER`.
    """

    site: str
    kind: str
    category: str


class SignalKey(NamedTuple):
    """What logits say of a token, in the steps of one kind.

    Attributes:
        signal: ``top1_prob``, ``margin``, ``entropy`` or ``logprob``, as in `Profile.tokens`.
        kind: of the steps.
    """

    signal: str
    kind: str


@dataclass(frozen=True)
class StepTotals:
    """The steps of one kind.

    Attributes:
        begun: how many began.
        failed: how many ended by an exception.
        rows: rows, of the steps whose rows are known.
        tokens_in: positions fed, of the steps whose lengths are known.
        tokens_committed: tokens committed by them, once that is certain.
        wall_ns: time of those that ended without an exception.
        itl_ns: inter-token latency of the tokens that they committed.
        detailed: how many were recorded inside as fully as was asked: all, without a budget.
    """

    begun: int = 0
    failed: int = 0
    rows: int = 0
    tokens_in: int = 0
    tokens_committed: int = 0
    wall_ns: Histogram = field(default_factory=Histogram)
    itl_ns: Histogram = field(default_factory=Histogram)
    detailed: int = 0


@dataclass(frozen=True)
class SiteTotals:
    """The calls of one site in the steps of one kind.

    Attributes:
        own_ns: time in its spans that was in no span inside them; with a budget the estimate for
            all steps, from those with all detail, by the inverse of their probability.
        dur_ns: duration of its spans, of those that were recorded.
    """

    own_ns: int = 0
    dur_ns: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True)
class ActivationTotals:
    """What one site put out in the observed steps of one kind.

    Attributes:
        observations: how many there were.
        weight: how many there would be had every step been observed, an estimate: the sum of their
            weights, 1 / the probability of each.
        weighted_count: likewise, the number of finite values.
        weighted_sum: likewise, their sum.
        weighted_sum_sq: likewise, the sum of their squares.
        values: the values in them, not weighted.
    """

    observations: int = 0
    weight: float = 0.0
    weighted_count: float = 0.0
    weighted_sum: float = 0.0
    weighted_sum_sq: float = 0.0
    values: Histogram = field(default_factory=Histogram)

    @property
    def mean(self) -> float:
        """Of the values of all steps, estimated by the weights; NaN where there are none."""
        return self.weighted_sum / self.weighted_count if self.weighted_count else math.nan

    @property
    def rms(self) -> float:
        """Their root mean square, likewise."""
        square = self.weighted_sum_sq / self.weighted_count if self.weighted_count else math.nan
        return math.sqrt(square) if square >= 0 else math.nan


@dataclass(frozen=True)
class SignalTotals(ActivationTotals):
    """What the logits of the steps of one kind said of the tokens that these committed.

    The same figures, of one value a token: `observations` are the tokens of which it is known, and
    `weight` estimates how many there would be had the logits of every step been read.
    """


@dataclass(frozen=True)
class RequestTotals:
    """The requests of one label set. Latencies are of those that ended without an exception.

    Attributes:
        started: how many began.
        finished: how many ended without an exception.
        failed: how many ended by one.
        tokens_in: tokens of their prompts, where known.
        tokens_out: tokens committed to them, once that is certain.
        duration_ns: from the beginning to the end.
        ttft_ns: time to first token.
        tpot_ns: time per output token, after the first.
        itl_ns: inter-token latency, of all their tokens, those of requests that failed included.
        step_ns: time of their steps, by kind.
    """

    started: int = 0
    finished: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    duration_ns: Histogram = field(default_factory=Histogram)
    ttft_ns: Histogram = field(default_factory=Histogram)
    tpot_ns: Histogram = field(default_factory=Histogram)
    itl_ns: Histogram = field(default_factory=Histogram)
    step_ns: Mapping[str, Histogram] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "step_ns", MappingProxyType(dict(self.step_ns)))


@dataclass(frozen=True)
class Totals:
    """What one or more recordings have seen since they started, evicted steps included.

    ``Totals()`` is that of no recording. Merging is commutative and associative: counts, minima
    and maxima are exact in any order, sums of durations to rounding.

    Attributes:
        recordings: how many recordings these totals are of.
        recorded_ns: for how long they ran, all together, pauses excluded.
        steps: by kind, those that occurred.
        sites: by site, kind of step and category.
        activations: by site, kind of step and category: those that were observed.
        logits: by signal and kind of step, where logits were read.
        requests: by label set; `()` is that of requests without labels.
        losses: counts of what is missing: `records_dropped` are missing here as well, while evicted
            spans, steps and requests are missing from profiles only.
    """

    recordings: int = 0
    recorded_ns: int = 0
    steps: Mapping[str, StepTotals] = field(default_factory=dict)
    sites: Mapping[SiteKey, SiteTotals] = field(default_factory=dict)
    activations: Mapping[SiteKey, ActivationTotals] = field(default_factory=dict)
    logits: Mapping[SignalKey, SignalTotals] = field(default_factory=dict)
    requests: Mapping[LabelSet, RequestTotals] = field(default_factory=dict)
    losses: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "sites", "activations", "logits", "requests", "losses"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def all_requests(self) -> RequestTotals:
        """The requests of all label sets together."""
        return _sum(self.requests.values(), RequestTotals())

    @property
    def all_steps(self) -> StepTotals:
        """The steps of all kinds together."""
        return _sum(self.steps.values(), StepTotals())

    def merge(self, other: Totals) -> Totals:
        """The totals of both together.

        Raises:
            TypeError: the other is no `Totals`.
            HistogramError: the counts do not add up in 64 bits.
        """
        if not isinstance(other, Totals):
            raise TypeError(f"can only merge Totals, not a {type(other).__name__}")
        joined: Totals = _joined(self, other)
        return joined

    def __add__(self, other: object) -> Totals:
        return self.merge(other) if isinstance(other, Totals) else NotImplemented

    def __radd__(self, other: object) -> Totals:
        # sum() begins with 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def to_dict(self) -> dict[str, Any]:
        """As plain data, ready for JSON, that `from_dict` reads."""
        from pertoken.totals_json import totals_to_dict

        return totals_to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Totals:
        """From what `to_dict` gave, as it came back from JSON.

        Raises:
            TotalsError: it is not of that form.
        """
        from pertoken.totals_json import totals_from_dict

        return totals_from_dict(data)

    def __reduce__(self) -> tuple[Any, ...]:
        return Totals.from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        """Name the sizes."""
        counts = (
            plural_text(self.all_requests.started, "request"),
            plural_text(self.all_steps.begun, "step"),
            plural_text(self.all_steps.tokens_committed, "token"),
        )
        return f"<Totals of {plural_text(self.recordings, 'recording')}: {', '.join(counts)}>"


def _sum(parts: Iterable[T], empty: T) -> T:
    result = empty
    for part in parts:
        result = _joined(result, part)
    return result


def _joined(a: Any, b: Any) -> Any:
    """Numbers add up, histograms merge, mappings join by key, and so do the fields of totals."""
    if isinstance(a, int | float):
        return a + b
    if isinstance(a, Histogram):
        return a.merge(b)
    if isinstance(a, Mapping):
        common = {key: _joined(a[key], b[key]) for key in a.keys() & b.keys()}
        return {**a, **b, **common}
    return type(a)(**{f.name: _joined(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)})
