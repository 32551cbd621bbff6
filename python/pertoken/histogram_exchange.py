"""Histograms as the dicts of OpenTelemetry and Prometheus, and back, with all that is checked.

Both have the same buckets. OpenTelemetry's bucket ``i`` is Prometheus's ``i + 1``, and what the one
writes as an offset and counts, the other writes as spans of buckets and differences of counts.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pertoken import _native
from pertoken.errors import HistogramError

_LOWEST_SCALE: int = _native.MIN_HISTOGRAM_SCALE
_HIGHEST_SCALE: int = _native.MAX_HISTOGRAM_SCALE
_OTEL_HIGHEST_SCALE = 20
_PROMETHEUS_SCALES = (-4, 8)
# So many empty buckets are written as such; more of them begin a new span. As Prometheus's own
# clients do: a span takes as much room as two counts.
_GAP = 2
_MOST_COUNT = 2**64 - 1
# As both formats write them.
_INDICES = (-(2**31), 2**31 - 1)
_MOST_LENGTH = 2**20


class Buckets(NamedTuple):
    """Consecutive buckets.

    Attributes:
        offset: index of the first, as OpenTelemetry counts.
        counts: uint64, the values in each.
    """

    offset: int
    counts: NDArray[np.uint64]


class HistogramParts(NamedTuple):
    """All that a histogram consists of; moments are NaN where they are not known."""

    scale: int
    positive: Buckets
    negative: Buckets
    zeros: int
    nans: int
    pos_infs: int
    neg_infs: int
    sum: float
    sum_sq: float
    min: float
    max: float


def to_otel(parts: HistogramParts) -> dict[str, Any]:
    """A data point of OpenTelemetry."""
    return {
        "count": _count(parts),
        "sum": _told(parts.sum),
        "min": _told(parts.min),
        "max": _told(parts.max),
        "scale": parts.scale,
        "zero_count": parts.zeros,
        "positive": _otel_buckets(parts.positive),
        "negative": _otel_buckets(parts.negative),
    }


def from_otel(point: Mapping[str, Any]) -> HistogramParts:
    """The parts of a data point of OpenTelemetry.

    Raises:
        HistogramError: a field is missing, of another type, or at odds with the others.
    """
    fields = _Fields(point, "an OpenTelemetry histogram")
    scale = fields.integer("scale", _LOWEST_SCALE, _OTEL_HIGHEST_SCALE)
    sides = []
    for name in ("positive", "negative"):
        side = _Fields(fields.mapping(name), f"an OpenTelemetry histogram's {name!r}")
        counts = side.integers("bucket_counts", 0, _MOST_COUNT)
        offset = side.integer("offset", *_INDICES)
        sides.append(_lowered(offset, counts, max(0, scale - _HIGHEST_SCALE)))
    parts = HistogramParts(
        scale=min(scale, _HIGHEST_SCALE),
        positive=sides[0],
        negative=sides[1],
        zeros=fields.integer("zero_count", 0, _MOST_COUNT),
        nans=0,
        pos_infs=0,
        neg_infs=0,
        sum=fields.number("sum"),
        sum_sq=math.nan,
        min=fields.number("min"),
        max=fields.number("max"),
    )
    fields.check_zero_threshold()
    fields.check_count("count", _count(parts))
    if _count(parts) and parts.min > parts.max:
        raise fields.error(f"a min of {parts.min} is above its max of {parts.max}")
    return parts


def to_prometheus(parts: HistogramParts) -> dict[str, Any]:
    """A native histogram of Prometheus.

    Raises:
        HistogramError: Prometheus has no such scale.
    """
    lowest, _ = _PROMETHEUS_SCALES
    if parts.scale < lowest:
        raise HistogramError(
            f"Prometheus has no histograms of scale {parts.scale}, only from {lowest}; "
            "count at a finer scale"
        )
    positive_span, positive_delta = _spans(parts.positive)
    negative_span, negative_delta = _spans(parts.negative)
    return {
        "sample_count": _count(parts),
        "sample_sum": parts.sum,
        "schema": parts.scale,
        "zero_threshold": 0.0,
        "zero_count": parts.zeros,
        "negative_span": negative_span,
        "negative_delta": negative_delta,
        "positive_span": positive_span,
        "positive_delta": positive_delta,
    }


def from_prometheus(histogram: Mapping[str, Any]) -> HistogramParts:
    """The parts of a native histogram of Prometheus.

    Raises:
        HistogramError: a field is missing, of another type, or at odds with the others.
    """
    fields = _Fields(histogram, "a Prometheus histogram")
    parts = HistogramParts(
        scale=fields.integer("schema", *_PROMETHEUS_SCALES),
        positive=_from_spans(fields, "positive"),
        negative=_from_spans(fields, "negative"),
        zeros=fields.integer("zero_count", 0, _MOST_COUNT),
        nans=0,
        pos_infs=0,
        neg_infs=0,
        sum=fields.number("sample_sum"),
        sum_sq=math.nan,
        min=math.nan,
        max=math.nan,
    )
    fields.check_zero_threshold()
    fields.check_count("sample_count", _count(parts))
    return parts


class _Fields:
    """Fields of a mapping from outside, each checked when it is read."""

    def __init__(self, mapping: object, what: str) -> None:
        self._what = what
        if not isinstance(mapping, Mapping):
            raise HistogramError(f"{what} is a mapping, not a {type(mapping).__name__}")
        self._mapping = mapping

    def error(self, problem: str) -> HistogramError:
        return HistogramError(f"{self._what}: {problem}; see docs/histograms.md for its fields")

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._required(name)
        if not isinstance(value, Mapping):
            raise self.error(f"{name!r} is a mapping, not a {type(value).__name__}")
        return value

    def sequence(self, name: str) -> Sequence[Any]:
        value = self._required(name)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise self.error(f"{name!r} is a list, not a {type(value).__name__}")
        if len(value) > _MOST_LENGTH:
            raise self.error(f"{name!r} has {len(value)} entries, more than there are buckets")
        return value

    def integer(self, name: str, lowest: int, highest: int) -> int:
        return self._integer(self._required(name), name, lowest, highest)

    def integers(self, name: str, lowest: int, highest: int) -> list[int]:
        return [self._integer(value, name, lowest, highest) for value in self.sequence(name)]

    def number(self, name: str) -> float:
        """NaN where it is missing."""
        value = self._mapping.get(name)
        if value is None:
            return math.nan
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise self.error(f"{name!r} is a number, not {value!r}") from None

    def check_zero_threshold(self) -> None:
        if self._mapping.get("zero_threshold") is not None and self.number("zero_threshold") != 0:
            raise self.error("'zero_threshold' is not 0, but only exact zeros are counted as zeros")

    def check_count(self, name: str, counted: int) -> None:
        if self._mapping.get(name) is not None:
            told = self.integer(name, 0, _MOST_COUNT)
            if told != counted:
                raise self.error(f"{name!r} is {told}, but buckets and zeros hold {counted}")

    def _required(self, name: str) -> Any:
        if name not in self._mapping:
            raise self.error(f"{name!r} is missing")
        return self._mapping[name]

    def _integer(self, value: Any, name: str, lowest: int, highest: int) -> int:
        try:
            if isinstance(value, (bool, np.bool_)):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            raise self.error(f"{name!r} holds whole numbers, not {value!r}") from None
        if not lowest <= number <= highest:
            raise self.error(f"{name!r} holds {number}, which is not from {lowest} to {highest}")
        return number


def _count(parts: HistogramParts) -> int:
    sides = (parts.positive, parts.negative)
    return parts.zeros + sum(int(n) for side in sides for n in side.counts)


def _told(value: float) -> float | None:
    return None if math.isnan(value) else value


def _otel_buckets(buckets: Buckets) -> dict[str, Any]:
    return {"offset": buckets.offset, "bucket_counts": buckets.counts.tolist()}


def _lowered(offset: int, counts: Sequence[int], steps: int) -> Buckets:
    """Buckets at a scale lower by `steps`, from the first filled one on."""
    filled = [k for k, n in enumerate(counts) if n]
    if not filled:
        return Buckets(0, np.zeros(0, np.uint64))
    first, last = (offset + filled[0]) >> steps, (offset + filled[-1]) >> steps
    sums = [0] * (last - first + 1)
    for k in filled:
        sums[((offset + k) >> steps) - first] += counts[k]
    if max(sums) > _MOST_COUNT:
        raise HistogramError("the counts of a histogram do not add up in 64 bits")
    return Buckets(first, np.array(sums, np.uint64))


def _spans(buckets: Buckets) -> tuple[list[dict[str, int]], list[int]]:
    spans: list[dict[str, int]] = []
    deltas: list[int] = []
    end = 0  # index after the last span, as Prometheus counts
    before = 0
    counts = buckets.counts.tolist()
    for k, n in enumerate(counts):
        if not n:
            continue
        index = buckets.offset + k + 1
        if spans and index - end <= _GAP:
            for _ in range(index - end):
                deltas.append(-before)
                before = 0
            spans[-1]["length"] += index - end + 1
        else:
            spans.append({"offset": index - end, "length": 1})
        deltas.append(n - before)
        before = n
        end = index + 1
    return spans, deltas


def _from_spans(fields: _Fields, side: str) -> Buckets:
    deltas = fields.integers(f"{side}_delta", -_MOST_COUNT, _MOST_COUNT)
    counts: dict[int, int] = {}
    index = 0
    used = 0
    n = 0
    for number, item in enumerate(fields.sequence(f"{side}_span")):
        span = _Fields(item, f"a Prometheus histogram's {side} span")
        # Only the first may lie below the bucket 0; the others are told by the gap before them.
        index += span.integer("offset", _INDICES[0] if number == 0 else 0, _INDICES[1])
        length = span.integer("length", 0, _MOST_LENGTH)
        if used + length > len(deltas):
            break
        for delta in deltas[used : used + length]:
            n += delta
            if not 0 <= n <= _MOST_COUNT:
                raise fields.error(f"'{side}_delta' adds up to {n} values in a bucket")
            if n:
                counts[index - 1] = n
            index += 1
        used += length
    else:
        if used == len(deltas):
            return _dense(fields, side, counts)
    raise fields.error(f"'{side}_span' and '{side}_delta' are not of as many buckets")


def _dense(fields: _Fields, side: str, counts: Mapping[int, int]) -> Buckets:
    if not counts:
        return Buckets(0, np.zeros(0, np.uint64))
    first, last = min(counts), max(counts)
    if last - first >= _MOST_LENGTH:
        raise fields.error(f"'{side}_span' reaches over {last - first + 1} buckets")
    array = np.zeros(last - first + 1, np.uint64)
    for index, n in counts.items():
        array[index - first] = n
    return Buckets(first, array)
