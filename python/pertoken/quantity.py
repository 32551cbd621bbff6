"""Numbers and names as people read them: durations, counts, shares, and names made printable."""

from __future__ import annotations

_TIME_UNITS = (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1))
_COUNT_UNITS = (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3))
_LONGEST_NAME = 400


def duration_text(value_ns: float | None) -> str:
    """Write nanoseconds with three digits or more and a unit: ``1.23 ms``; ``-`` for None."""
    if value_ns is None:
        return "-"
    sign = "-" if value_ns < 0 else ""
    size = abs(value_ns)
    for unit, factor in _TIME_UNITS:
        # What would be rounded up to 1000 of a unit is written as 1 of the next.
        if size >= factor * 0.9995 and (unit != "ns" or size < 1000):
            break
    if unit == "ns":
        return f"{sign}{round(size)} ns"
    return f"{sign}{_three_digits(size / factor)} {unit}"


def count_text(value: int) -> str:
    """Write an integer with separators: ``12,345``."""
    return f"{value:,}"


def size_text(value: float) -> str:
    """Write a large number with three digits and a letter: ``1.23 M``."""
    for letter, factor in _COUNT_UNITS:
        if value >= factor * 0.9995:
            return f"{_three_digits(value / factor)} {letter}"
    return f"{value:.3g}"


def rate_text(value_per_s: float | None) -> str:
    """Write a rate of tokens: ``123 tok/s``; ``-`` for None."""
    return "-" if value_per_s is None else f"{size_text(value_per_s)} tok/s"


def share_text(value: float) -> str:
    """Write a share as a percentage with one decimal: ``12.3 %``."""
    return f"{value * 100:.1f} %"


def percent_text(share: float) -> str:
    """Write a small share as a percentage with two digits: ``0.42 %``."""
    percent = share * 100
    return f"{percent:.2g} %" if abs(percent) < 10 else f"{percent:,.0f} %"


def plural_text(count: int, noun: str) -> str:
    """Write a count and its noun: ``1 step``, ``2 steps``."""
    return f"{count_text(count)} {noun}{'' if count == 1 else 's'}"


def name_text(name: object) -> str:
    """Make a name safe to print: what is not printable is escaped, and a long one is cut.

    A name comes from a model or from a file; it must not move the cursor or colour the terminal.
    """
    text = str(name)
    if len(text) > _LONGEST_NAME:
        text = f"{text[: _LONGEST_NAME - 3]}..."
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
