"""The public histogram: merging, scales, quantiles, moments, and what a value in Python must do."""

from __future__ import annotations

import copy
import math
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pertoken
from exact_buckets import exact_index
from pertoken import Histogram, HistogramError, PertokenError

ANY = st.lists(st.floats(allow_subnormal=True, width=64), max_size=40)
FLOAT32 = st.lists(st.floats(width=32), max_size=40)
SCALES = st.integers(-10, 8)
COUNTS = ("scale", "count", "zeros", "nans", "pos_infs", "neg_infs")


def parts(histogram: Histogram) -> tuple[object, ...]:
    """All that is exact: everything but the two sums."""
    sides = (histogram.positive, histogram.negative)
    return (
        *(getattr(histogram, name) for name in COUNTS),
        repr((histogram.min, histogram.max)),
        *((side.offset, side.counts.tolist()) for side in sides),
    )


@settings(deadline=None)
@given(ANY, ANY, ANY, st.tuples(SCALES, SCALES, SCALES))
def test_merging_is_associative_and_commutative_and_counts_as_one_would(
    a: list[float], b: list[float], c: list[float], scales: tuple[int, int, int]
) -> None:
    x, y, z = (Histogram.from_values(v, s) for v, s in zip((a, b, c), scales, strict=True))
    expected = parts(Histogram.from_values(a + b + c, min(scales)))
    assert parts((x + y) + z) == parts(x + (y + z)) == parts(z.merge(y).merge(x)) == expected


@settings(deadline=None)
@given(ANY, SCALES, SCALES)
def test_a_lower_scale_is_as_if_counted_so(a: list[float], one: int, other: int) -> None:
    lower, higher = sorted((one, other))
    histogram = Histogram.from_values(a, higher)
    assert parts(histogram.downscale(lower)) == parts(Histogram.from_values(a, lower))
    assert parts(histogram) == parts(Histogram.from_values(a, higher)), "the first has changed"


@settings(deadline=None)
@given(FLOAT32, SCALES, st.floats(0, 1))
def test_a_quantile_is_in_the_bucket_of_the_ranked_value(
    a: list[float], scale: int, q: float
) -> None:
    finite = sorted(v for v in a if math.isfinite(v))
    estimate = Histogram.from_values(a, scale).quantile(q)
    if not finite:
        assert math.isnan(estimate)
        return
    true = finite[max(math.ceil(q * len(finite)), 1) - 1]
    assert finite[0] <= estimate <= finite[-1]
    assert (estimate > 0) == (true > 0) and (estimate < 0) == (true < 0)
    if true:
        assert exact_index(abs(estimate), scale) == exact_index(abs(true), scale)


@settings(deadline=None)
@given(FLOAT32)
def test_moments_are_those_of_the_finite_values(a: list[float]) -> None:
    histogram = Histogram.from_values(a)
    finite = [v for v in a if math.isfinite(v)]
    size = math.fsum(abs(v) for v in finite)
    assert histogram.sum == pytest.approx(math.fsum(finite), rel=0, abs=size * 2**-50)
    assert histogram.sum_sq == pytest.approx(math.fsum(v * v for v in finite), rel=2**-48)
    if finite:
        assert histogram.mean == histogram.sum / len(finite)
        assert (histogram.min, histogram.max) == (min(finite), max(finite))
        assert histogram.variance >= 0
    else:
        assert math.isnan(histogram.mean) and math.isnan(histogram.variance)


def test_mean_and_variance_of_known_values() -> None:
    histogram = Histogram.from_values([1.0, 2.0, 3.0, 4.0, math.nan, math.inf])
    assert (histogram.count, histogram.mean, histogram.variance) == (4, 2.5, 1.25)
    assert Histogram.from_values([0.1] * 10).variance >= 0


def test_the_variance_of_values_too_large_to_be_squared_is_infinite() -> None:
    assert Histogram.from_values([1e200, -1e200]).variance == math.inf


def test_an_empty_histogram() -> None:
    for empty in (Histogram(), Histogram.from_values([]), Histogram.from_values(np.ones((3, 0)))):
        assert empty == Histogram(3)
        assert (empty.count, empty.sum, empty.sum_sq, empty.scale) == (0, 0.0, 0.0, 3)
        assert all(map(math.isnan, (empty.min, empty.max, empty.mean, empty.variance)))
        assert math.isnan(empty.quantile(0.5))
        assert len(empty.buckets().counts) == 0
        assert repr(empty) == "Histogram(count=0, scale=3)"


def test_buckets_are_bounds_and_counts_in_the_order_of_values() -> None:
    buckets = Histogram.from_values([-3.0, -1.0, 0.0, 0.0, 1.5, 2.0, 3.0], scale=0).buckets()
    assert buckets.lower.tolist() == [-4.0, -1.0, 0.0, 1.0, 2.0]
    assert buckets.upper.tolist() == [-2.0, -0.5, 0.0, 2.0, 4.0]
    assert buckets.counts.tolist() == [1, 1, 2, 2, 1]


@settings(deadline=None)
@given(FLOAT32, SCALES)
def test_buckets_hold_every_value_between_finite_bounds(a: list[float], scale: int) -> None:
    buckets = Histogram.from_values(a, scale).buckets()
    assert np.isfinite(buckets.lower).all() and np.isfinite(buckets.upper).all()
    for value in (v for v in a if math.isfinite(v)):
        inside = (buckets.lower <= value) & (value <= buckets.upper)
        assert inside.any()
    assert buckets.counts.sum() == sum(map(math.isfinite, a))


def test_equal_histograms_are_equal_and_hash_alike() -> None:
    x = Histogram.from_values([1.0, 2.0, math.nan])
    y = Histogram.from_values([2.0, 1.0, math.nan])
    assert x == y and hash(x) == hash(y) and len({x, y}) == 1
    assert x != Histogram.from_values([1.0, 2.1, math.nan])
    assert x != Histogram.from_values([1.0, 2.0, math.nan], scale=2)
    assert x != 3 and x != "Histogram"


def test_what_is_unknown_equals_itself_and_stays_unknown() -> None:
    point = Histogram.from_values([1.0, 2.0]).to_otel() | {"min": None, "sum": None}
    unknown = Histogram.from_otel(point)
    assert unknown == Histogram.from_otel(point)
    for merged in (unknown + Histogram.from_values([0.5]), Histogram.from_values([0.5]) + unknown):
        assert math.isnan(merged.min) and math.isnan(merged.sum) and math.isnan(merged.variance)
        assert merged.max == 2.0
    assert unknown + Histogram() == unknown == Histogram() + unknown
    assert unknown.quantile(0) == pytest.approx(1.0, rel=0.1)


@settings(deadline=None)
@given(ANY, SCALES)
def test_copies_and_pickles_are_equal(a: list[float], scale: int) -> None:
    histogram = Histogram.from_values(a, scale)
    for copied in (
        copy.copy(histogram),
        copy.deepcopy(histogram),
        pickle.loads(pickle.dumps(histogram)),
    ):
        assert copied == histogram and parts(copied) == parts(histogram)


def test_a_sum_of_histograms_is_their_merge() -> None:
    histograms = [Histogram.from_values([float(n)]) for n in range(5)]
    assert sum(histograms) == Histogram.from_values([0.0, 1.0, 2.0, 3.0, 4.0])


def test_the_text_says_what_was_counted() -> None:
    text = repr(Histogram.from_values([1.0, 3.0, 0.0, math.nan, -math.inf]))
    assert text == (
        "Histogram(count=3, mean=1.333, std=1.247, min=0, p50=0.9576, p99=3, max=3, "
        "zeros=1, nans=1, neg_infs=1, scale=3)"
    )


def test_a_histogram_cannot_be_changed() -> None:
    histogram = Histogram.from_values([1.0])
    for name in ("scale", "count", "_core", "anything"):
        with pytest.raises(AttributeError):
            setattr(histogram, name, 1)
        with pytest.raises(AttributeError):
            delattr(histogram, name)
    histogram.positive.counts[0] = 7
    assert histogram.positive.counts.tolist() == [1]


@pytest.mark.parametrize("scale", [-11, 9, math.nan, 3.0, "3", None, 2**80])
def test_a_scale_that_is_none_is_refused(scale: object) -> None:
    for make in (Histogram, lambda s: Histogram.from_values([1.0], s), Histogram().downscale):
        with pytest.raises(HistogramError, match="scale"):
            make(scale)  # type: ignore[arg-type]


def test_bad_arguments_get_one_clear_error() -> None:
    histogram = Histogram.from_values([1.0], scale=2)
    with pytest.raises(HistogramError, match="cannot be made finer"):
        histogram.downscale(3)
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(HistogramError, match="from 0 to 1"):
            histogram.quantile(q)
    with pytest.raises(TypeError, match="not a list"):
        histogram.merge([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        histogram + 1  # type: ignore[operator]
    assert issubclass(HistogramError, PertokenError) and issubclass(HistogramError, ValueError)


def test_counts_that_would_overflow_are_refused_and_nothing_changes() -> None:
    point = {"scale": 0, "zero_count": 2**64 - 2, "positive": {}, "negative": {}}
    for side in ("positive", "negative"):
        point[side] = {"offset": 0, "bucket_counts": []}
    full = Histogram.from_otel(point)
    assert (full + Histogram.from_values([1.0])).count == 2**64 - 1
    with pytest.raises(HistogramError, match="64 bits"):
        full.merge(Histogram.from_values([1.0, math.nan]))
    assert full.count == 2**64 - 2


def test_threads_count_large_tensors_at_once() -> None:
    tensor = torch.randn(300_000)
    expected = Histogram.from_values(tensor)
    found: list[Histogram] = []
    threads = [
        threading.Thread(target=lambda: found.append(Histogram.from_values(tensor)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_the_class_is_public_and_found_lazily() -> None:
    assert pertoken.Histogram is Histogram and "Histogram" in dir(pertoken)
