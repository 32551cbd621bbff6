"""Histograms as OpenTelemetry's and Prometheus's, to the letter, and back; what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertoken import Histogram, HistogramError

VALUES = st.lists(
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30), max_size=40
)
KNOWN = ("count", "zeros", "scale")


def test_a_data_point_of_opentelemetry_by_its_field_names() -> None:
    histogram = Histogram.from_values([1.0, 1.5, 3.0, 0.0, -8.0, math.nan], scale=0)
    assert histogram.to_otel() == {
        "count": 5,
        "sum": -2.5,
        "min": -8.0,
        "max": 3.0,
        "scale": 0,
        "zero_count": 1,
        "positive": {"offset": -1, "bucket_counts": [1, 1, 1]},
        "negative": {"offset": 2, "bucket_counts": [1]},
    }


def test_opentelemetrys_own_types_take_it() -> None:
    from opentelemetry.sdk.metrics._internal.point import Buckets
    from opentelemetry.sdk.metrics.export import ExponentialHistogramDataPoint

    point = Histogram.from_values([1.0, 5.0]).to_otel()
    sides = {name: Buckets(**point.pop(name)) for name in ("positive", "negative")}
    built = ExponentialHistogramDataPoint(
        attributes={}, start_time_unix_nano=0, time_unix_nano=0, flags=0, **sides, **point
    )
    assert built.count == 2


def test_the_same_counts_as_opentelemetrys_aggregation() -> None:
    """Through the SDK's meter, at the scale that it ends at."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View

    reader = InMemoryMetricReader()
    view = View(
        instrument_name="*",
        aggregation=ExponentialBucketHistogramAggregation(max_size=160, max_scale=3),
    )
    meter = MeterProvider([reader], views=[view], shutdown_on_exit=False).get_meter("test")
    recorded = meter.create_histogram("values")
    values = np.abs(np.random.default_rng(0).normal(size=2000)).astype(np.float32)
    values = np.append(values, np.float32(0))
    for value in values.tolist():
        recorded.record(value)
    data: Any = reader.get_metrics_data()
    point = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]
    theirs = Histogram.from_otel(
        {
            **{name: getattr(point, name) for name in ("scale", "zero_count", "count", "sum")},
            "min": point.min,
            "max": point.max,
            "positive": vars(point.positive),
            "negative": vars(point.negative),
        }
    )
    ours = Histogram.from_values(values, scale=point.scale)
    assert ours.to_otel() == theirs.to_otel() | {"sum": ours.sum}
    assert theirs.sum == pytest.approx(ours.sum)


@settings(deadline=None, max_examples=50)
@given(VALUES, st.integers(-10, 8))
def test_opentelemetry_and_back(values: list[float], scale: int) -> None:
    histogram = Histogram.from_values(values, scale)
    point = histogram.to_otel()
    assert json.loads(json.dumps(point)) == point
    back = Histogram.from_otel(point)
    assert back.to_otel() == point
    assert all(getattr(back, name) == getattr(histogram, name) for name in KNOWN)
    assert math.isnan(back.sum_sq) == bool(values)


def test_a_scale_finer_than_ours_is_lowered_exactly() -> None:
    # Buckets 2**12 times as fine: indices -1, 0, 4095 and 4096 of scale 20 are -1, 0, 0, 1 of 8.
    point = {
        "scale": 20,
        "zero_count": 0,
        "positive": {"offset": -1, "bucket_counts": [1, 2] + [0] * 4094 + [3, 4]},
        "negative": {"offset": 0, "bucket_counts": []},
    }
    histogram = Histogram.from_otel(point)
    assert histogram.scale == 8
    assert histogram.to_otel()["positive"] == {"offset": -1, "bucket_counts": [1, 5, 4]}


def test_empty_buckets_at_the_ends_do_not_matter() -> None:
    point = Histogram.from_values([1.0, 2.0], scale=0).to_otel()
    padded = point | {"positive": {"offset": -3, "bucket_counts": [0, 0, 1, 1, 0]}}
    assert Histogram.from_otel(padded) == Histogram.from_otel(point)


def test_a_native_histogram_of_prometheus_by_its_field_names() -> None:
    # OpenTelemetry's buckets -1, 0, 3 and 9 are 0, 1, 4 and 10; two empty ones are written out.
    values = [1.0, 2.0, 2.0, 9.0, 1000.0, 0.0, -1.0]
    assert Histogram.from_values(values, scale=0).to_prometheus() == {
        "sample_count": 7,
        "sample_sum": 1013.0,
        "schema": 0,
        "zero_threshold": 0.0,
        "zero_count": 1,
        "positive_span": [{"offset": 0, "length": 5}, {"offset": 5, "length": 1}],
        "positive_delta": [1, 1, -2, 0, 1, 0],
        "negative_span": [{"offset": 0, "length": 1}],
        "negative_delta": [1],
    }


@settings(deadline=None, max_examples=50)
@given(VALUES, st.integers(-4, 8))
def test_prometheus_and_back(values: list[float], scale: int) -> None:
    histogram = Histogram.from_values(values, scale)
    native = histogram.to_prometheus()
    back = Histogram.from_prometheus(json.loads(json.dumps(native)))
    assert back.to_prometheus() == native
    for side in ("positive", "negative"):
        ours, theirs = getattr(histogram, side), getattr(back, side)
        assert (ours.offset, ours.counts.tolist()) == (theirs.offset, theirs.counts.tolist())
    assert back.count == histogram.count
    assert back.sum == histogram.sum


def test_a_scale_that_prometheus_lacks_is_refused() -> None:
    with pytest.raises(HistogramError, match="-4"):
        Histogram(-5).to_prometheus()


def otel(**changes: Any) -> dict[str, Any]:
    point = Histogram.from_values([1.0, 2.0, -4.0, 0.0], scale=0).to_otel() | changes
    return {name: value for name, value in point.items() if value != "missing"}


def side(offset: Any = 0, counts: Any = (1,)) -> dict[str, Any]:
    return {"offset": offset, "bucket_counts": counts}


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (None, "mapping"),
        ([], "mapping"),
        ({}, "missing"),
        *[(otel(**{name: "missing"}), name) for name in ("scale", "zero_count", "positive")],
        (otel(scale=21), "scale"),
        (otel(scale=-11), "scale"),
        (otel(scale=3.0), "scale"),
        (otel(scale=True), "scale"),
        (otel(zero_count=-1), "zero_count"),
        (otel(zero_count=2**64), "zero_count"),
        (otel(count=3), "count"),
        (otel(count=None, zero_count=2**64 - 1), "64 bits"),
        (otel(zero_threshold=1e-6), "zero_threshold"),
        (otel(zero_threshold=math.nan), "zero_threshold"),
        (otel(sum="3"), "sum"),
        (otel(min=3.0, max=2.0), "above its max"),
        (otel(positive=None), "positive"),
        (otel(positive={"offset": 0}), "bucket_counts"),
        (otel(positive=side(counts="12")), "bucket_counts"),
        (otel(positive=side(counts=[1.5])), "bucket_counts"),
        (otel(positive=side(counts=[-1])), "bucket_counts"),
        (otel(positive=side(counts=[2**64])), "bucket_counts"),
        (otel(positive=side(counts=[0] * (2**20 + 1))), "entries"),
        (otel(positive=side(offset=math.nan)), "offset"),
        (otel(positive=side(offset=2**31)), "'offset' holds"),
        (otel(count=None, positive=side(offset=1024)), "finite doubles"),
        (otel(count=None, negative=side(offset=-1076)), "finite doubles"),
    ],
)
def test_a_data_point_that_is_none_is_refused(point: Any, message: str) -> None:
    with pytest.raises(HistogramError, match=message):
        Histogram.from_otel(point)


def prometheus(**changes: Any) -> dict[str, Any]:
    native = Histogram.from_values([1.0, 2.0, 900.0], scale=0).to_prometheus() | changes
    return {name: value for name, value in native.items() if value != "missing"}


@pytest.mark.parametrize(
    ("native", "message"),
    [
        (7, "mapping"),
        (prometheus(schema="missing"), "schema"),
        (prometheus(schema=9), "schema"),
        (prometheus(schema=-53), "schema"),
        (prometheus(sample_count=4), "sample_count"),
        (prometheus(zero_threshold=2.9e-39), "zero_threshold"),
        (prometheus(positive_delta=[1, -2, 1]), "adds up to -1"),
        (prometheus(positive_delta=[1, 0]), "as many buckets"),
        (prometheus(positive_delta=[1, 0, 0, 0]), "as many buckets"),
        (prometheus(positive_span=[]), "as many buckets"),
        (prometheus(positive_span=[3]), "span is a mapping"),
        (prometheus(positive_span=[{"offset": 0, "length": -1}]), "length"),
        (prometheus(positive_span=[{"offset": 0, "length": 2}, {"offset": -1, "length": 1}]),
         "offset"),
        (prometheus(positive_span=[{"offset": 0, "length": 2}, {"offset": 2**30, "length": 1}]),
         "reaches over"),
    ],
)  # fmt: skip
def test_a_native_histogram_that_is_none_is_refused(native: Any, message: str) -> None:
    with pytest.raises(HistogramError, match=message):
        Histogram.from_prometheus(native)
