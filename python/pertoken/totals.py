"""Everything since the start of a recording, as one small value that merges.

A `Totals` is made by `Recording.totals()` and is in every profile. It has no times of single
events, only counts and exponential histograms, so its size does not grow with the run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from pertoken.errors import MergeError
from pertoken.histogram import Histogram

OTHER = "__other__"
"""Stands for all sites, and all label sets, that came after the bound was reached."""

LabelSet = tuple[tuple[str, str], ...]
"""Labels of requests with their values, ascending by label."""

OTHER_LABELS: LabelSet = ((OTHER, "true"),)

LOSSES = (
    "records_dropped",
    "spans_evicted",
    "steps_evicted",
    "requests_evicted",
    "faults",
    "requests_uncounted",
    "tokens_uncounted",
)

K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P", bound="Part")


class SiteKey(NamedTuple):
    """Where spans are counted.

    Attributes:
        site: the module's or region's name; `OTHER` for those beyond the bound.
        category: as in the table ``spans``; empty for `OTHER`.
        kind: of the step that the span ran in, or of which it leads to, if it lies between two;
            empty outside steps.
    """

    site: str
    category: str
    kind: str


@dataclass(frozen=True)
class Part:
    """A part of the totals: counts and histograms, each of which adds up."""

    def merge(self: P, other: P) -> P:
        """What both have counted."""
        if type(other) is not type(self):
            raise TypeError(f"can only merge a {type(self).__name__}, not a {_name_of(other)}")
        return type(self)(
            **{
                own.name: _added(getattr(self, own.name), getattr(other, own.name))
                for own in fields(self)
            }
        )


@dataclass(frozen=True)
class StepTotals(Part):
    """The steps of one kind.

    Attributes:
        begun: how many began.
        failed: how many an exception ended.
        rows: their rows, where known.
        tokens_in: positions fed to the model, padding included, where known.
        tokens_committed: tokens committed at their ends, once these are certain.
        wall_ns: durations on the host of those that ended without an exception, in nanoseconds.
        itl_ns: inter-token latencies of the tokens that they committed, in nanoseconds.
    """

    begun: int = 0
    failed: int = 0
    rows: int = 0
    tokens_in: int = 0
    tokens_committed: int = 0
    wall_ns: Histogram = field(default_factory=Histogram)
    itl_ns: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True)
class SiteTotals(Part):
    """The spans of one site in steps of one kind.

    Attributes:
        own_ns: time that no span inside took, in nanoseconds.
        dur_ns: durations of the spans, in nanoseconds.
    """

    own_ns: int = 0
    dur_ns: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True)
class RequestTotals(Part):
    """The requests of one label set.

    Attributes:
        started: how many began.
        finished: how many ended without an exception.
        failed: how many an exception ended.
        tokens_in: prompt tokens over all rows, padding excluded, where known; counted at the end.
        tokens_out: tokens committed, once these are certain.
        duration_ns: from entry to exit, of finished ones, in nanoseconds.
        ttft_ns: time to first token, of finished ones, in nanoseconds.
        tpot_ns: time per output token, of finished ones, in nanoseconds.
        itl_ns: inter-token latencies, in nanoseconds.
        step_ns: by kind, durations of their steps that ended without an exception, in nanoseconds;
            of steps of one request only.
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
        """Keep a copy that nobody changes."""
        object.__setattr__(self, "step_ns", MappingProxyType(dict(self.step_ns)))

    def __hash__(self) -> int:
        return hash((self.started, self.finished, self.failed, self.tokens_out, self.itl_ns))

    def __reduce__(self) -> tuple[Any, ...]:
        values = [getattr(self, own.name) for own in fields(self)]
        return RequestTotals, (*values[:-1], dict(self.step_ns))


class Totals:
    """Counts and latencies of everything since the start of one or several recordings.

    It is immutable. `merge` is associative and commutative, and `Totals()` its neutral element;
    only the sums of histograms, which are floating-point numbers, are rounded.

    Attributes:
        steps: `StepTotals` by kind of step.
        sites: `SiteTotals` by `SiteKey`.
        requests: `RequestTotals` by label set, such as ``(("tenant", "a"),)``; ``model_version``
            is one of the labels. Once 128 sets were met, further ones count as `OTHER_LABELS`.
        losses: what is missing, as counts by reason.
        meta: ``processes``, a list with who recorded what, ordered by its content.
    """

    __slots__ = ("_losses", "_processes", "_requests", "_sites", "_steps")

    _steps: Mapping[str, StepTotals]
    _sites: Mapping[SiteKey, SiteTotals]
    _requests: Mapping[LabelSet, RequestTotals]
    _losses: Mapping[str, int]
    _processes: tuple[str, ...]  # as JSON

    def __init__(
        self,
        steps: Mapping[str, StepTotals] | None = None,
        sites: Mapping[SiteKey, SiteTotals] | None = None,
        requests: Mapping[LabelSet, RequestTotals] | None = None,
        losses: Mapping[str, int] | None = None,
        processes: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """Keep copies; without arguments, nothing was counted.

        Args:
            steps: by kind.
            sites: by site, category and kind.
            requests: by label set, its labels ascending.
            losses: by reason.
            processes: one mapping for each recording, of plain JSON-able data.
        """
        described = sorted(json.dumps(dict(process), sort_keys=True) for process in processes)
        for name, value in (
            ("_steps", _ordered(steps)),
            ("_sites", _ordered({SiteKey(*key): site for key, site in (sites or {}).items()})),
            ("_requests", _ordered(requests)),
            ("_losses", MappingProxyType({**dict.fromkeys(LOSSES, 0), **(losses or {})})),
            ("_processes", tuple(described)),
        ):
            object.__setattr__(self, name, value)

    @property
    def steps(self) -> Mapping[str, StepTotals]:
        """Steps, by kind; read-only."""
        return self._steps

    @property
    def sites(self) -> Mapping[SiteKey, SiteTotals]:
        """Spans, by site, category and kind of step; read-only."""
        return self._sites

    @property
    def requests(self) -> Mapping[LabelSet, RequestTotals]:
        """Requests, by label set; read-only."""
        return self._requests

    @property
    def losses(self) -> Mapping[str, int]:
        """What is missing, as counts by reason; read-only."""
        return self._losses

    @property
    def meta(self) -> dict[str, Any]:
        """Who recorded; a copy, plain JSON-able data."""
        return {"processes": [json.loads(process) for process in self._processes]}

    def requests_with(self, **labels: str) -> RequestTotals:
        """The requests that have these labels, whatever others they have; all without any.

        Requests that count as `OTHER_LABELS` are found only without labels.
        """
        wanted = set(labels.items())
        return _sum(
            (held for labels, held in self._requests.items() if wanted <= set(labels)),
            RequestTotals(),
        )

    def site(self, name: str) -> SiteTotals:
        """The spans of a name, of all categories and in steps of all kinds."""
        return _sum((held for key, held in self._sites.items() if key.site == name), SiteTotals())

    def merge(self, other: Totals) -> Totals:
        """The totals of both.

        Raises:
            TypeError: the other is no `Totals`.
            MergeError: both have counted the same recording, which would count twice.
            HistogramError: counts do not add up in 64 bits.
        """
        if not isinstance(other, Totals):
            raise TypeError(f"can only merge a Totals, not a {_name_of(other)}")
        twice = set(map(_recording_of, self._processes)) & set(map(_recording_of, other._processes))
        if twice:
            raise MergeError(
                f"{len(twice)} recording(s) are in both totals and would count twice: merge totals "
                "of different recordings, the latest of each"
            )
        return Totals(
            _joined(self._steps, other._steps, StepTotals.merge),
            _joined(self._sites, other._sites, SiteTotals.merge),
            _joined(self._requests, other._requests, RequestTotals.merge),
            Counter(dict(self._losses)) + Counter(dict(other._losses)),
            map(json.loads, self._processes + other._processes),
        )

    def __add__(self, other: object) -> Totals:
        return self.merge(other) if isinstance(other, Totals) else NotImplemented

    def __radd__(self, other: object) -> Totals:
        # sum() begins with 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def to_dict(self) -> dict[str, Any]:
        """As plain data, ready for JSON, that `from_dict` reads; see the documentation."""
        from pertoken.totals_json import dump

        return dump(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Totals:
        """From what `to_dict` gave.

        Raises:
            FileFormatError: the data are not those of totals.
        """
        from pertoken.totals_json import parse

        return parse(data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Totals):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash((self._processes, tuple(self._steps)))

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: totals do not change."""
        raise AttributeError(f"Totals do not change: {name} cannot be set; merge() gives new ones")

    def __delattr__(self, name: str) -> None:
        """Refuse: totals do not change."""
        raise AttributeError(f"Totals do not change: {name} cannot be deleted")

    def __copy__(self) -> Totals:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Totals:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Totals, (
            dict(self._steps),
            dict(self._sites),
            dict(self._requests),
            dict(self._losses),
            self.meta["processes"],
        )

    def __repr__(self) -> str:
        """Name the sizes."""
        begun = sum(steps.begun for steps in self._steps.values())
        requests = sum(held.started for held in self._requests.values())
        tokens = sum(steps.tokens_committed for steps in self._steps.values())
        return (
            f"<Totals of {len(self._processes)} recording(s): {requests} requests, {begun} steps, "
            f"{tokens} tokens>"
        )


def _ordered(parts: Mapping[K, V] | None) -> Mapping[K, V]:
    """A read-only copy whose order does not tell the order of merging."""
    return MappingProxyType(dict(sorted((parts or {}).items(), key=lambda item: item[0])))  # type: ignore[arg-type,return-value]


def _joined(ours: Mapping[K, V], theirs: Mapping[K, V], add: Callable[[V, V], V]) -> dict[K, V]:
    result = dict(ours)
    for key, value in theirs.items():
        result[key] = add(result[key], value) if key in result else value
    return result


def _added(ours: Any, theirs: Any) -> Any:
    if isinstance(ours, Mapping):
        return _joined(ours, theirs, Histogram.merge)
    return ours + theirs


def _sum(parts: Iterable[P], nothing: P) -> P:
    for part in parts:
        nothing = nothing.merge(part)
    return nothing


def _recording_of(process: str) -> tuple[Any, ...]:
    facts = json.loads(process)
    return tuple(facts.get(key) for key in ("host", "pid", "unix_origin_ns"))


def _name_of(value: object) -> str:
    return type(value).__name__
