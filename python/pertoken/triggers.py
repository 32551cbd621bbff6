"""What makes a recording dump what it holds: slow steps, bad values, a function, a signal.

Steps and values are seen by the thread that collects them, so a trigger costs the model nothing.
"""

from __future__ import annotations

import numbers
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pertoken.errors import SelectionError
from pertoken.number_argument import is_number
from pertoken.schema import STEP_KINDS

if TYPE_CHECKING:
    from pertoken.recording import Recording

_LONGEST_S = 1e6


@dataclass(frozen=True)
class StepTime:
    """A step that takes longer than a fixed time.

    Args:
        over_s: the time, in seconds.
        kind: of which kind of step; None: of every kind.

    Raises:
        SelectionError: `over_s` is not positive, or there is no such kind.
    """

    over_s: float
    kind: str | None = None

    def __post_init__(self) -> None:
        """Checks the arguments."""
        _check_number("over_s", self.over_s, 0, _LONGEST_S)
        _check_kind(self.kind)


@dataclass(frozen=True)
class SlowStep:
    """A step that takes `factor` times as long as a quantile of its kind since the start.

    Args:
        factor: how many times as long.
        quantile: of the steps of its kind that ended so far, evicted ones included; from the
            histograms of `Recording.totals()`, whose buckets are 9 % wide.
        kind: of which kind of step; None: of every kind, each by its own quantile.
        min_steps: how many steps of the kind must have ended before.

    Raises:
        SelectionError: a number is out of its range, `min_steps` is no integer, or there is no
            such kind.
    """

    factor: float = 2.0
    quantile: float = 0.99
    kind: str | None = None
    min_steps: int = 200

    def __post_init__(self) -> None:
        """Checks the arguments."""
        _check_number("factor", self.factor, 0, 1e6)
        _check_number("quantile", self.quantile, 0, 1)
        _check_number("min_steps", self.min_steps, 0, 1 << 40, of=numbers.Integral)
        _check_kind(self.kind)


@dataclass(frozen=True)
class NonFinite:
    """A site begins to put out values that are no finite numbers, where it is observed.

    What is observed is said by `activations`, or given to `pertoken.observe`. A site fires once,
    and again when a whole observed step of it was good meanwhile.

    Args:
        infinities: whether infinite values fire as well, not only NaN.

    Raises:
        SelectionError: `infinities` is neither True nor False.
    """

    infinities: bool = True

    def __post_init__(self) -> None:
        """Checks the argument."""
        if type(self.infinities) is not bool:
            raise SelectionError(f"infinities={self.infinities!r}: give True or False")


@dataclass(frozen=True)
class When:
    """A function of one's own says so.

    Args:
        function: called with the recording, on a thread of pertoken's; a true value dumps, and
            its text is put into the dump's metadata. What it raises is counted in
            ``losses["faults"]`` and logged once.
        every_s: how often it is called, in seconds.

    Raises:
        SelectionError: `function` cannot be called, or `every_s` is not positive.
    """

    function: Callable[[Recording], Any]
    every_s: float = 1.0

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if not callable(self.function):
            raise SelectionError(f"function={self.function!r}: give something to call")
        _check_number("every_s", self.every_s, 0, _LONGEST_S)


@dataclass(frozen=True)
class Signal:
    """A signal arrives, by default ``SIGUSR2``; what handled it before still does.

    The recording must be started in the main thread, since Python sets handlers only there.
    ``SIGINT``, ``SIGTERM`` and ``SIGQUIT`` need a handler of the program's own, so that they still
    end the process. Other signals that would end it, such as ``SIGUSR1``, ``SIGUSR2`` and
    ``SIGHUP``, do not while the recording runs.

    Args:
        number: which one.

    Raises:
        SelectionError: it is not a signal that can be handled.
    """

    number: int = signal.SIGUSR2

    def __post_init__(self) -> None:
        """Checks the argument."""
        unhandled = (signal.SIGKILL, signal.SIGSTOP)
        is_known = is_number(self.number, numbers.Integral)
        is_known = is_known and self.number in signal.valid_signals()
        if not is_known or self.number in unhandled:
            raise SelectionError(f"number={self.number!r}: give a signal that can be handled")


Trigger = StepTime | SlowStep | NonFinite | When | Signal


def _check_number(
    name: str, value: float, above: float, most: float, of: type = numbers.Real
) -> None:
    if not (is_number(value, of) and above < value <= most):
        what = "an integer" if of is numbers.Integral else "a number"
        raise SelectionError(f"{name}={value!r}: give {what} above {above}, at most {most:g}")


def _check_kind(kind: str | None) -> None:
    if kind is not None and kind not in STEP_KINDS:
        raise SelectionError(f"kind={kind!r}: a step is one of {', '.join(STEP_KINDS)}")
