"""The exponential histogram that OpenTelemetry and Prometheus share, as a value."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from pertoken import _native, histogram_exchange
from pertoken.errors import DeviceError, HistogramError, UnsupportedTensorError
from pertoken.histogram_exchange import Buckets, HistogramParts
from pertoken.quantity import count_text
from pertoken.tensor_memory import Device, TensorMemory, memory_of

DEFAULT_SCALE = 3


class FilledBuckets(NamedTuple):
    """The filled buckets of a histogram, by ascending value; arrays of one length.

    Attributes:
        lower: float64, the bound nearer to minus infinity; 0 for the zeros.
        upper: float64, the bound nearer to infinity; 0 for the zeros.
        counts: uint64, the values in it.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    counts: NDArray[np.uint64]


class Histogram:
    """An immutable exponential histogram with exact counts and moments.

    With ``base = 2 ** 2 ** -scale``, bucket ``i`` holds the values in ``(base**i, base**(i + 1)]``,
    its upper bound included; negative values are counted by their size, in buckets of their own.
    The bucket of a value is that of exact arithmetic, for every value of every format. Zeros, NaNs
    and infinities have counters.

    Args:
        scale: -10 to 8. At the default of 3, buckets are 9 % wide.

    Raises:
        HistogramError: the scale is not such a number.
    """

    __slots__ = ("_core",)

    _core: _native.ExpHistogram

    def __init__(self, scale: int = DEFAULT_SCALE) -> None:
        object.__setattr__(self, "_core", _native.ExpHistogram(_checked_scale(scale)))

    @classmethod
    def from_values(cls, x: object, scale: int = DEFAULT_SCALE) -> Histogram:
        """Count the values of an array or tensor.

        Args:
            x: an array of numpy, a tensor of torch (one that requires a gradient, too), an array
                of CuPy, an object with DLPack, ``__array_interface__`` or the buffer protocol, or
                numbers in nested lists; of any shape and strides. float64, float32, float16,
                bfloat16 and the float8 formats e4m3 and e5m2 are read in place. Integers in host
                memory become float64, if that is exact. What lies on an NVIDIA GPU is counted
                there, on the current stream, which is waited for; float64 and integers are not.
            scale: as of `Histogram`; on a GPU at most 3.

        Returns:
            The histogram; an empty one of no values.

        Raises:
            UnsupportedTensorError: the values are of another type, or cannot be reached.
            HistogramError: the scale is no number from -10 to 8, or above 3 on a GPU.
            DeviceError: the GPU failed, or its stream is being captured into a CUDA graph.
        """
        scale = _checked_scale(scale)
        memory = memory_of(x)
        with _clear_errors():
            if memory.device is not None:
                return from_native(_of_gpu(memory, memory.device, scale))
            return from_native(
                _native.ExpHistogram.of_tensor(
                    memory.address, memory.format, memory.shape, memory.strides_bytes, scale
                )
            )

    @property
    def scale(self) -> int:
        """The resolution: buckets grow by ``2 ** 2 ** -scale``."""
        return self._core.scale

    @property
    def count(self) -> int:
        """Finite values, zeros included; NaNs and infinities have counters of their own."""
        return self._core.count

    @property
    def zeros(self) -> int:
        """Values equal to 0, of either sign."""
        return self._core.zeros

    @property
    def nans(self) -> int:
        """Values that are not a number."""
        return self._core.nans

    @property
    def pos_infs(self) -> int:
        """Values of plus infinity."""
        return self._core.pos_infs

    @property
    def neg_infs(self) -> int:
        """Values of minus infinity."""
        return self._core.neg_infs

    @property
    def sum(self) -> float:
        """Sum of the finite values; 0 of none, NaN where a source did not tell it."""
        return self._core.sum

    @property
    def sum_sq(self) -> float:
        """Sum of their squares; 0 of none, NaN where a source did not tell it."""
        return self._core.sum_sq

    @property
    def min(self) -> float:
        """The least finite value, exactly; NaN of none, or where a source did not tell it."""
        return self._core.min

    @property
    def max(self) -> float:
        """The greatest finite value, exactly; NaN of none, or where a source did not tell it."""
        return self._core.max

    @property
    def mean(self) -> float:
        """Mean of the finite values; NaN of none."""
        return self.sum / self.count if self.count else math.nan

    @property
    def variance(self) -> float:
        """Variance of the finite values as a whole population; NaN of none.

        From `sum` and `sum_sq`: of values that all lie close to a mean far from 0, digits are lost.
        """
        if not self.count:
            return math.nan
        difference = self.sum_sq / self.count - self.mean**2
        return difference if math.isnan(difference) else max(difference, 0.0)

    @property
    def positive(self) -> Buckets:
        """The buckets of the values above 0, from the lowest filled one to the highest."""
        return Buckets(*self._core.positive)

    @property
    def negative(self) -> Buckets:
        """The buckets of the values below 0, by their size."""
        return Buckets(*self._core.negative)

    def buckets(self) -> FilledBuckets:
        """What is to be plotted: bounds and counts of the filled buckets.

        A bound is the true one rounded down to a double, at most the largest finite one.
        """
        rows = [(-upper, -lower, n) for lower, upper, n in self._bounds(self.negative)][::-1]
        if self.zeros:
            rows.append((0.0, 0.0, self.zeros))
        rows += self._bounds(self.positive)
        lower, upper, counts = zip(*rows, strict=True) if rows else ((), (), ())
        return FilledBuckets(
            np.array(lower, np.float64), np.array(upper, np.float64), np.array(counts, np.uint64)
        )

    def _bounds(self, buckets: Buckets) -> list[tuple[float, float, int]]:
        def bound(index: int) -> float:
            largest = float(np.finfo(np.float64).max)
            return min(_native.bucket_upper_bound(index, self.scale), largest)

        return [
            (bound(buckets.offset + k - 1), bound(buckets.offset + k), n)
            for k, n in enumerate(buckets.counts.tolist())
            if n
        ]

    def quantile(self, q: SupportsFloat) -> float:
        """Estimate a quantile of the finite values.

        Args:
            q: from 0, which gives `min`, to 1, which gives `max`.

        Returns:
            A value in the bucket of the one that ranks ``ceil(q * count)``, hence at most a factor
            of ``2 ** 2 ** -scale`` away from it; NaN of no values.

        Raises:
            HistogramError: q is not from 0 to 1.
        """
        with _clear_errors():
            return self._core.quantile(float(q))

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of the values of both, at the lower scale of the two.

        Counts, minimum and maximum are exact, sums rounded, whatever the order of merging.

        Raises:
            TypeError: the other is no histogram.
            HistogramError: the counts do not add up in 64 bits.
        """
        if not isinstance(other, Histogram):
            raise TypeError(f"can only merge a Histogram, not a {type(other).__name__}")
        with _clear_errors():
            return from_native(self._core.merged(other._core))

    def __add__(self, other: object) -> Histogram:
        return self.merge(other) if isinstance(other, Histogram) else NotImplemented

    def __radd__(self, other: object) -> Histogram:
        # sum() begins with 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def downscale(self, scale: int) -> Histogram:
        """The histogram of the same values at a lower scale, exactly.

        Raises:
            HistogramError: the scale is above the present one, or out of range.
        """
        if _checked_scale(scale) > self.scale:
            raise HistogramError(
                f"a histogram of scale {self.scale} cannot be made finer; give at most {self.scale}"
            )
        return from_native(self._core.downscaled(scale))

    def to_otel(self) -> dict[str, Any]:
        """As a data point of OpenTelemetry's exponential histogram, by its field names.

        Returns:
            ``count``, ``sum``, ``min``, ``max`` (None where there is none), ``scale``,
            ``zero_count``, ``positive`` and ``negative``, each
            ``{"offset": int, "bucket_counts": list of int}``. OpenTelemetry has no place for NaNs,
            infinities and the sum of squares: they are left out.
        """
        return histogram_exchange.to_otel(self._parts())

    @classmethod
    def from_otel(cls, point: Mapping[str, Any]) -> Histogram:
        """From a data point of OpenTelemetry, as `to_otel` gives.

        ``count``, ``sum``, ``min``, ``max`` and ``zero_threshold`` may be missing or None: sums and
        bounds that are not told are NaN, and so is `sum_sq`. A scale above 8 is lowered to 8.

        Raises:
            HistogramError: a field is missing, of another type, or at odds with the others.
        """
        with _clear_errors():
            return cls._of_parts(histogram_exchange.from_otel(point))

    def to_prometheus(self) -> dict[str, Any]:
        """As a native histogram of Prometheus, by the field names of its protobuf.

        Returns:
            ``sample_count``, ``sample_sum``, ``schema``, ``zero_threshold`` (0.0), ``zero_count``,
            ``positive_span`` and ``negative_span`` (lists of ``{"offset": int, "length": int}``),
            ``positive_delta`` and ``negative_delta`` (lists of int). A scale above Prometheus's
            highest, 8, does not occur. Minimum, maximum, NaNs, infinities and the sum of squares
            are left out.

        Raises:
            HistogramError: the scale is below -4, the lowest that Prometheus has.
        """
        return histogram_exchange.to_prometheus(self._parts())

    @classmethod
    def from_prometheus(cls, histogram: Mapping[str, Any]) -> Histogram:
        """From a native histogram of Prometheus, as `to_prometheus` gives.

        `min`, `max` and `sum_sq` are NaN, since Prometheus does not tell them.

        Raises:
            HistogramError: a field is missing, of another type, or at odds with the others.
        """
        with _clear_errors():
            return cls._of_parts(histogram_exchange.from_prometheus(histogram))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self._core.equals(other._core)

    def __hash__(self) -> int:
        return hash((self.scale, self.count, self.zeros, self.nans, self.pos_infs, self.neg_infs))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Histogram cannot be changed; merge() and downscale() give new ones")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Histogram cannot be changed")

    def __copy__(self) -> Histogram:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Histogram:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        parts = self._parts()._asdict()
        for side in ("positive", "negative"):
            offset, counts = parts[side]
            parts[side] = (offset, counts.tolist())
        return _unpickled, (parts,)

    def __repr__(self) -> str:
        def number(value: float) -> str:
            return f"{value:.4g}"

        parts = [f"count={count_text(self.count)}"]
        if self.count:
            parts += [
                f"mean={number(self.mean)}",
                f"std={number(math.sqrt(self.variance))}",
                f"min={number(self.min)}",
                f"p50={number(self.quantile(0.5))}",
                f"p99={number(self.quantile(0.99))}",
                f"max={number(self.max)}",
            ]
        for name in ("zeros", "nans", "pos_infs", "neg_infs"):
            if n := getattr(self, name):
                parts.append(f"{name}={count_text(n)}")
        return f"Histogram({', '.join(parts)}, scale={self.scale})"

    def _parts(self) -> HistogramParts:
        return HistogramParts(**{name: getattr(self, name) for name in HistogramParts._fields})

    @classmethod
    def _of_parts(cls, parts: HistogramParts) -> Histogram:
        fields = parts._asdict()
        for side in ("positive", "negative"):
            fields[f"{side}_offset"], fields[side] = fields[side]
        return from_native(_native.ExpHistogram.from_parts(**fields))


def _of_gpu(memory: TensorMemory, device: Device, scale: int) -> _native.ExpHistogram:
    try:
        return _native.histogram_of_gpu_tensor(
            device.ordinal,
            device.stream,
            memory.address,
            memory.format,
            memory.shape,
            memory.strides_bytes,
            scale,
        )
    except TypeError as error:
        raise UnsupportedTensorError(f"the tensor cannot be counted on its GPU: {error}") from None
    except RuntimeError as error:
        raise DeviceError(f"the tensor cannot be counted on its GPU: {error}") from None


def from_native(core: _native.ExpHistogram) -> Histogram:
    """The public form of a native histogram, which nobody may change afterwards."""
    histogram = Histogram.__new__(Histogram)
    object.__setattr__(histogram, "_core", core)
    return histogram


def from_parts(parts: HistogramParts) -> Histogram:
    """A histogram of given counts and moments.

    Raises:
        HistogramError: they are at odds with each other.
    """
    with _clear_errors():
        return Histogram._of_parts(parts)


def _unpickled(parts: dict[str, Any]) -> Histogram:
    for side in ("positive", "negative"):
        offset, counts = parts[side]
        parts[side] = Buckets(offset, np.array(counts, np.uint64))
    return from_parts(HistogramParts(**parts))


def _checked_scale(scale: object) -> int:
    lowest, highest = _native.MIN_HISTOGRAM_SCALE, _native.MAX_HISTOGRAM_SCALE
    try:
        number = operator.index(scale)  # type: ignore[arg-type]
    except TypeError:
        raise HistogramError(
            f"a histogram's scale is a whole number from {lowest} to {highest}, not {scale!r}"
        ) from None
    if not lowest <= number <= highest:
        raise HistogramError(f"a histogram's scale is from {lowest} to {highest}, not {number}")
    return number


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Gives what the native histogram refuses the package's own type of error."""
    try:
        yield
    except HistogramError:
        raise
    except (ValueError, OverflowError) as error:
        raise HistogramError(str(error)) from error
