"""The bucket of each value, against exact arithmetic and OpenTelemetry's own mapping."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping import (
    exponent_mapping,
    logarithm_mapping,
)

from exact_buckets import counts_by_index, counts_of, exact_index, values_at_boundaries
from pertoken import Histogram, _native
from pertoken.histogram import from_native
from pertoken.tensor_memory import memory_of

NEEDS = {
    "portable": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
}
NARROW = ("float16", "bfloat16")
BYTES = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


def index_of(value: np.floating, scale: int) -> int:
    """The only filled bucket."""
    histogram = Histogram.from_values(np.array([value]), scale)
    assert histogram.positive.counts.tolist() == [1]
    return histogram.positive.offset


def test_exact_arithmetic_agrees_with_what_is_known() -> None:
    assert [exact_index(x, 0) for x in (0.5, 0.75, 1.0, 1.5, 2.0, 2.5)] == [-2, -1, -1, 0, 0, 1]
    assert [exact_index(x, 1) for x in (1.0, math.sqrt(2), 1.4, 1.5, 2.0)] == [-1, 1, 0, 1, 1]
    assert [exact_index(x, -1) for x in (1.0, 1.5, 4.0, 4.5, 0.25)] == [-1, 0, 0, 1, -2]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [-10, -1, 0, 3])
def test_values_beside_every_power_of_the_base_are_in_their_bucket(
    dtype: type[np.floating], scale: int
) -> None:
    values = values_at_boundaries(dtype, max(scale, 0))
    step = 1 if len(values) < 20_000 else 7  # coprime to the three that lie beside each other
    wrong = [v for v in values[::step] if index_of(v, scale) != exact_index(float(v), scale)]
    assert not wrong
    both = np.concatenate([values, -values])
    assert counts_of(Histogram.from_values(both, scale)) == counts_by_index(both.tolist(), scale)


@pytest.mark.parametrize("scale", [4, 8])
def test_finer_scales_are_exact_too(scale: int) -> None:
    values = values_at_boundaries(np.float32, scale)[::17]
    assert counts_of(Histogram.from_values(values, scale)) == counts_by_index(
        values.tolist(), scale
    )


@pytest.mark.parametrize("scale", [-2, 3, 8])
@pytest.mark.parametrize("name", [*NARROW, *BYTES])
def test_every_pattern_of_a_narrow_format_is_in_its_bucket(name: str, scale: int) -> None:
    dtype = getattr(torch, name)
    bits = torch.arange(1 << (8 * dtype.itemsize), dtype=torch.int32)
    tensor = bits.to(torch.uint16 if name in NARROW else torch.uint8).view(dtype)
    values = tensor.to(torch.float64)
    histogram = Histogram.from_values(tensor, scale)
    assert counts_of(histogram) == counts_by_index(values.tolist(), scale)
    assert histogram.nans == int(values.isnan().sum())
    assert histogram.pos_infs == int(values.isposinf().sum())
    assert histogram.neg_infs == int(values.isneginf().sum())
    assert histogram.zeros == int((values == 0).sum())
    finite = values[values.isfinite()]
    assert (histogram.min, histogram.max) == (float(finite.min()), float(finite.max()))
    assert histogram.count == len(finite)


@pytest.mark.parametrize("scale", [-10, -4, 0, 1, 3, 5])
def test_float32_values_are_where_opentelemetry_maps_them(scale: int) -> None:
    mapping = (
        exponent_mapping.ExponentMapping(scale)
        if scale <= 0
        else logarithm_mapping.LogarithmMapping(scale)
    )
    values = values_at_boundaries(np.float32, 3)
    ours = counts_of(Histogram.from_values(values, scale))[0]
    theirs: dict[int, int] = {}
    for value in values.tolist():
        index = mapping.map_to_index(value)
        theirs[index] = theirs.get(index, 0) + 1
    assert ours == theirs


def test_the_sets_of_instructions_are_those_that_the_processor_says_it_has() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().replace("\n", " ").split())
    assert list(_native.instruction_sets()) == [name for name in NEEDS if NEEDS[name] <= flags]
    with pytest.raises(ValueError, match="mmx"):
        _native.ExpHistogram.of_tensor(0, 0, (), (), 3, "mmx")


def test_all_sets_of_instructions_give_the_same_to_the_bit() -> None:
    for tensor in (torch.randn(5000), torch.randn(77, 33).t().half(), torch.randn(9, 9).bfloat16()):
        memory = memory_of(tensor)
        found = [
            _native.ExpHistogram.of_tensor(
                memory.address, memory.format, memory.shape, memory.strides_bytes, 3, name
            )
            for name in _native.instruction_sets()
        ]
        assert all(from_native(core) == Histogram.from_values(tensor) for core in found)
