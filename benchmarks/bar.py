"""What a bar is: a limit on one figure of the results, and what was measured beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CONTROL = "nothing again"
Format = Callable[[float], str]


@dataclass(frozen=True)
class Bar:
    """A limit on one figure: at most, or at least where `at_least` says so."""

    what: str
    benchmark: str  # the section of the results that the figure is in
    read: Callable[[Any], dict[str, float] | None]  # section -> median, low, high; None: not here
    limit: float
    text: Format
    at_least: bool = False
    # What the control measured, as `read` gives it, and what it should have: its noise.
    read_control: Callable[[Any], float] | None = None
    neutral: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured."""

    bar: Bar
    measured: dict[str, float]
    control: float | None

    @property
    def outcome(self) -> str:
        """``pass`` or ``FAIL`` by the median, ``noise`` where the control misses the limit, too."""
        bar = self.bar
        if self.control is not None:
            allowed = abs(bar.limit - bar.neutral)
            if abs(self.control - bar.neutral) > allowed:
                return "noise"
        median = self.measured["median"]
        return "pass" if (median >= bar.limit if bar.at_least else median <= bar.limit) else "FAIL"


def exact(value: float) -> dict[str, float]:
    """The estimate of what is known without error."""
    return {"median": value, "low": value, "high": value}
