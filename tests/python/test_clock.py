"""The native clock: what it says about itself, and its fits against arbitrary samples."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertoken import _native

UNKNOWN_NS = 2**63 - 1
START_TICKS = 900_000_000_000_000
BOOT_NS = 300_000_000_000_000

Samples = npt.NDArray[np.int64]


def samples_of(
    gaps: list[int], widths: list[int], ticks_per_us: int, ppm: int, steps: dict[int, int]
) -> Samples:
    """Bracketed reads of a clock at a constant rate, in exact integers.

    `gaps` are ticks between reads; `steps` adds nanoseconds from a read on.
    """
    rows = []
    ticks = START_TICKS
    stepped_ns = 0
    for index, (gap, width) in enumerate(zip(gaps, widths, strict=True)):
        ticks += gap
        stepped_ns += steps.get(index, 0)
        elapsed_ns = (ticks - START_TICKS) * 1000 * (1_000_000 + ppm) // (ticks_per_us * 1_000_000)
        rows.append((ticks - width // 2, BOOT_NS + elapsed_ns + stepped_ns, ticks + width // 2))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


# Brackets of these widths are all narrow enough to be used.
gaps_and_widths = st.lists(
    st.tuples(st.integers(1_000, 20_000_000_000), st.integers(80, 300)), min_size=2, max_size=40
)


@st.composite
def sample_arrays(draw: st.DrawFn, with_steps: bool = True) -> Samples:
    pairs = draw(gaps_and_widths)
    steps = (
        draw(st.dictionaries(st.integers(1, 40), st.integers(-(10**7), 10**12), max_size=3))
        if with_steps
        else {}
    )
    return samples_of(
        [gap for gap, _ in pairs],
        [width for _, width in pairs],
        draw(st.sampled_from([24, 1000, 2600, 5000])),
        draw(st.integers(-200, 200)),
        steps,
    )


def ticks_around(samples: Samples, seed: int, count: int = 300) -> npt.NDArray[np.uint64]:
    """Ticks in and somewhat outside the samples' range, with close neighbours, ascending."""
    low, high = int(samples[0, 0]), int(samples[-1, 2])
    ticks = np.random.default_rng(seed).integers(low - 10**6, high + 10**9, count)
    return np.sort(np.concatenate([ticks, ticks + 1, samples[:, 0], samples[:, 2]])).astype(
        np.uint64
    )


def test_clock_info_describes_a_calibrated_clock() -> None:
    info = _native.clock_info()
    assert set(info) == {"source", "reason", "ticks_per_second", "error_bound_ns"}
    assert info["source"] in ("tsc", "steady")
    assert len(info["reason"]) > 10
    assert 1e6 < info["ticks_per_second"] < 1e11
    assert 0 < info["error_bound_ns"] < UNKNOWN_NS


def test_ticks_advance() -> None:
    first = _native.now_ticks()
    time.sleep(0.001)
    assert _native.now_ticks() > first


def test_no_samples_give_the_identity_and_one_a_line_at_the_nominal_rate() -> None:
    ticks = np.array([0, 5, 10**15], dtype=np.uint64)
    nothing = _native.fit_clock(np.empty((0, 3), dtype=np.int64))
    assert nothing.to_ns(ticks).tolist() == [0, 5, 10**15]
    one = _native.fit_clock(np.array([[100, 7000, 100]], dtype=np.int64), 0.25)
    assert one.to_ns(np.array([100, 104, 92], dtype=np.uint64)).tolist() == [7000, 7001, 6998]
    assert nothing.error_bound_ns == one.error_bound_ns == UNKNOWN_NS


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 3, 1)])
def test_samples_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        _native.fit_clock(np.zeros(shape, dtype=np.int64))


def test_negative_ticks_and_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        _native.fit_clock(np.array([[-1, 0, 5]], dtype=np.int64))
    with pytest.raises(TypeError):
        _native.fit_clock(np.zeros((2, 3), dtype=np.float64))
    clock_map = _native.fit_clock(np.array([[1, 0, 5]], dtype=np.int64))
    with pytest.raises(TypeError):
        clock_map.to_ns(np.zeros(3, dtype=np.float64))
    with pytest.raises(ValueError, match="one dimension"):
        clock_map.to_ns(np.zeros((2, 2), dtype=np.uint64))


def test_arrays_with_strides_are_read_right() -> None:
    wide = np.zeros((3, 6), dtype=np.int64)
    wide[:, ::2] = [[100, 1000, 100], [200, 1100, 200], [300, 1200, 300]]
    clock_map = _native.fit_clock(wide[:, ::2])
    ticks = np.arange(100, 301, dtype=np.uint64)
    assert np.array_equal(clock_map.to_ns(ticks[::50]), clock_map.to_ns(ticks)[::50])
    assert abs(int(clock_map.to_ns(ticks)[100]) - 1100) <= 1


@settings(max_examples=200, deadline=None)
@given(sample_arrays(), st.integers(0, 2**32))
def test_a_fit_never_decreases(samples: Samples, seed: int) -> None:
    ns = _native.fit_clock(samples).to_ns(ticks_around(samples, seed))
    assert (np.diff(ns) >= 0).all()


@settings(max_examples=200, deadline=None)
@given(sample_arrays(with_steps=False))
def test_a_fit_without_steps_is_within_its_error_bound_of_every_sample(samples: Samples) -> None:
    clock_map = _native.fit_clock(samples)
    middles = ((samples[:, 0] + samples[:, 2]) // 2).astype(np.uint64)
    assert clock_map.steps == 0
    assert np.abs(clock_map.to_ns(middles) - samples[:, 1]).max() <= clock_map.error_bound_ns


@settings(max_examples=100, deadline=None)
@given(sample_arrays(), st.randoms(use_true_random=False))
def test_a_fit_does_not_depend_on_the_order_of_samples(samples: Samples, random: object) -> None:
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(samples))  # type: ignore[attr-defined]
    ticks = ticks_around(samples, 1)
    assert np.array_equal(
        _native.fit_clock(samples).to_ns(ticks), _native.fit_clock(samples[order]).to_ns(ticks)
    )


@settings(max_examples=200, deadline=None)
@given(sample_arrays(), st.integers(0, 2**32), st.data())
def test_refits_keep_the_past_and_never_decrease(
    samples: Samples, seed: int, data: st.DataObject
) -> None:
    """Each refit has one more sample; ticks that were settled keep their value."""
    ticks = ticks_around(samples, seed)
    clock_map = _native.fit_clock(samples[:1], 0.4)
    for count in range(2, len(samples) + 1):
        settled = int(samples[count - 2, 2]) + data.draw(st.integers(-(10**6), 10**10))
        before = clock_map.to_ns(ticks)
        clock_map = clock_map.extend(samples[max(0, count - 8) : count], settled)
        after = clock_map.to_ns(ticks)
        assert np.array_equal(before[ticks <= settled], after[ticks <= settled])
        assert (np.diff(after) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(sample_arrays(), st.integers(0, 2**32), st.floats(0, 1))
def test_trim_keeps_what_is_at_and_after_the_tick(
    samples: Samples, seed: int, share: float
) -> None:
    clock_map = _native.fit_clock(samples)
    ticks = ticks_around(samples, seed)
    oldest = int(ticks[int(share * (len(ticks) - 1))])
    trimmed = clock_map.trim(oldest)
    kept = ticks[ticks >= oldest]
    assert trimmed.segments <= clock_map.segments
    assert np.array_equal(trimmed.to_ns(kept), clock_map.to_ns(kept))
