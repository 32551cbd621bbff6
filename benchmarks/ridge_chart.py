"""Distributions one below the other as SVG, on one axis of values; for a light and a dark page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from pertoken import Histogram

_TEXT = "#6e7781"
_FILL = "#1f7ae0"
_GRID = "#8b949e"
_WIDTH, _LABEL_WIDTH, _RIGHT = 760, 130, 16
_ROW_HEIGHT, _RIDGE_HEIGHT, _AXIS_HEIGHT = 46, 58, 40
# The axis is nearly linear below this size of a value, and logarithmic above.
_LINEAR = 0.1
_TICKS = (0.1, 1.0, 10.0, 100.0, 1000.0)
_BINS = 150


def svg(histograms: Mapping[str, Histogram], title: str) -> str:
    """The chart: the share of values by size, each row to its own greatest; bars end at p1, p99.

    `title` is for those who cannot see it.
    """
    lowest = min(_place(histogram.min) for histogram in histograms.values())
    highest = max(_place(histogram.max) for histogram in histograms.values())
    left, room = _LABEL_WIDTH, _WIDTH - _LABEL_WIDTH - _RIGHT

    def x_of(value: float) -> float:
        return left + room * (_place(value) - lowest) / (highest - lowest)

    bottom = _RIDGE_HEIGHT + _ROW_HEIGHT * (len(histograms) - 1) + 8
    lines = []
    for tick in sorted({0.0, *_TICKS, *(-tick for tick in _TICKS)}):
        if lowest <= _place(tick) <= highest:
            x = x_of(tick)
            lines += [
                f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{bottom}" stroke="{_GRID}" '
                'stroke-opacity="0.25"/>',
                f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>',
            ]
    for number, (name, histogram) in enumerate(histograms.items()):
        base = _RIDGE_HEIGHT + _ROW_HEIGHT * number
        p1, p99 = (x_of(histogram.quantile(q)) for q in (0.01, 0.99))
        lines += [
            f'<polygon points="{_outline(histogram, lowest, highest, base)}" fill="{_FILL}" '
            f'fill-opacity="0.45" stroke="{_FILL}"/>',
            f'<line x1="{p1:.1f}" y1="{base + 3}" x2="{p99:.1f}" y2="{base + 3}" '
            f'stroke="{_TEXT}" stroke-width="2"/>',
            f'<text x="{left - 10}" y="{base}" text-anchor="end">{escape(name)}</text>',
        ]
    body = "\n".join(lines)
    height = bottom + _AXIS_HEIGHT - 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" font-size="13" fill="{_TEXT}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
        f"<title>{escape(title)}</title>\n{body}\n</svg>\n"
    )


def _place(value: float) -> float:
    return math.asinh(value / _LINEAR)


def _outline(histogram: Histogram, lowest: float, highest: float, base: int) -> str:
    """The ridge as the points of a polygon; a bucket's values are spread evenly over its width."""
    width = (highest - lowest) / _BINS
    density = [0.0] * _BINS
    for lower, upper, count in zip(
        *(values.tolist() for values in histogram.buckets()), strict=True
    ):
        begin = (_place(max(lower, histogram.min)) - lowest) / width
        end = (_place(min(upper, histogram.max)) - lowest) / width
        length = max(end - begin, 1e-9)
        for place in range(max(int(begin), 0), min(int(end), _BINS - 1) + 1):
            part = max(0.0, min(end, place + 1) - max(begin, place)) / length
            density[place] += count * (part if end > begin else 1.0)
    scale = (_RIDGE_HEIGHT - 8) / max(density)
    step = (_WIDTH - _LABEL_WIDTH - _RIGHT) / _BINS
    points = [(float(_LABEL_WIDTH), float(base))]
    points += [
        (_LABEL_WIDTH + step * (place + 0.5), base - scale * share)
        for place, share in enumerate(density)
    ]
    points.append((_WIDTH - _RIGHT, float(base)))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
