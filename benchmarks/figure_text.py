"""How figures are written on the page: with their unit, to the digits that they have."""

from __future__ import annotations


def ns_text(value: float) -> str:
    """Writes a duration of up to a second."""
    for unit, factor in (("ms", 1e6), ("us", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} ns"


def factor_text(value: float) -> str:
    """Writes a ratio."""
    return f"{value:.2f} x" if value < 10 else f"{value:.1f} x"


def percent_text(value: float) -> str:
    """Writes a ratio to nothing as what it adds."""
    return f"{(value - 1) * 100:+.2f} %"


def share_text(value: float) -> str:
    """Writes a share of a time."""
    return f"{100 * value:.2g} %"


def bytes_text(value: float) -> str:
    """Writes a number of bytes."""
    return f"{value:.1f} bytes"


def rate_text(value: float) -> str:
    """Writes a rate of events."""
    return f"{value / 1e6:.2f} M/s"


def count_text(value: float) -> str:
    """Writes a number of things."""
    return f"{value:,.0f}"


def billions_text(value: float) -> str:
    """Writes a rate of values."""
    return f"{value / 1e9:.2f} G/s"


def bandwidth_text(value: float) -> str:
    """Writes bytes a second."""
    return f"{value / 1e9:,.0f} GB/s"
