"""Where the values of a variant come from: calls that are timed, or a stream of measured values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pertoken.errors import ExperimentError
from pertoken.experiment.plan import VALUE

Floats = NDArray[np.float64]
Clock = Callable[[], int]
Call = dict[str, Floats]  # of one call: for each quantity its values


class Exhausted(Exception):  # no fault: how a stream ends
    """A stream has no further value."""


@dataclass(frozen=True)
class Measured:
    """What a callable returns that measures for itself, instead of being timed.

    Attributes:
        values: numbers of 0 or more, such as the nanoseconds of each step of a run; or, by name,
            those of several quantities. Every call gives as many as the first.
    """

    values: Any


class Variant(Protocol):
    """One side of an experiment.

    Attributes:
        shares_noise: whether whatever disturbs its calls would disturb the other's alike, as in one
            process that does the same work for both.
    """

    shares_noise: bool

    def calls(self, count: int) -> list[Call]:
        """Makes so many calls in a row; raises `Exhausted` when there are not so many."""


class TimedCalls:
    """Calls a function: its nanoseconds are the value, or what it returns as `Measured`."""

    shares_noise = False  # the function may have noise of its own

    def __init__(self, function: Callable[[], object], name: str, clock: Clock) -> None:
        self._function = function
        self._name = name
        self._clock = clock

    def calls(self, count: int) -> list[Call]:
        """Makes so many calls."""
        return [self._call() for _ in range(count)]

    def _call(self) -> Call:
        start_ns = self._clock()
        returned = self._function()
        dur_ns = self._clock() - start_ns
        if isinstance(returned, Measured):
            return checked_call(returned.values, self._name)
        return {VALUE: np.array([float(dur_ns)])}


class Stream:
    """Takes measured values from an iterator: numbers, or mappings of quantities to numbers."""

    shares_noise = False

    def __init__(self, values: Iterable[object], name: str) -> None:
        self._values: Iterator[object] = iter(values)
        self._name = name

    def calls(self, count: int) -> list[Call]:
        """Takes so many values."""
        taken = []
        for _ in range(count):
            try:
                value = next(self._values)
            except StopIteration:
                raise Exhausted from None
            taken.append(checked_call(value, self._name))
        return taken


def variant_of(source: object, name: str, clock: Clock) -> Variant:
    """The variant that a user's callable or iterable is.

    Raises:
        ExperimentError: it is neither.
    """
    if callable(source):
        return TimedCalls(source, name, clock)
    if isinstance(source, Iterable) and not isinstance(source, (str, bytes, Mapping)):
        return Stream(source, name)
    raise ExperimentError(
        f"{name}: give a callable to be timed, or an iterator of measured values, "
        f"not {type(source).__name__}"
    )


def checked_call(values: object, name: str) -> Call:
    """The values of one call as arrays of float64.

    Raises:
        ExperimentError: there is none, or one is not a finite number of 0 or more.
    """
    by_quantity = values if isinstance(values, Mapping) else {VALUE: values}
    if not by_quantity:
        raise ExperimentError(f"{name}: a measurement holds no quantity")
    return {str(quantity): _checked(of, quantity, name) for quantity, of in by_quantity.items()}


def _checked(values: object, quantity: object, name: str) -> Floats:
    what = name if quantity == VALUE else f"{name}, {quantity}"
    if isinstance(values, Real):
        values = [float(values)]
    if not isinstance(values, (Sequence, np.ndarray)) or isinstance(values, (str, bytes)):
        raise ExperimentError(
            f"{what}: a measurement is of type {type(values).__name__}; give a number"
        )
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ExperimentError(f"{what}: a measurement is not made of numbers") from None
    if array.ndim != 1 or not array.size or not (np.isfinite(array) & (array >= 0)).all():
        raise ExperimentError(f"{what}: give one or more finite numbers of 0 or more a call")
    return array
