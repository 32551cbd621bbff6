"""A chart of horizontal bars as SVG, readable on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Each of these has enough contrast to white and to near-black.
_TEXT = "#6e7781"
_OURS = "#1f7ae0"
_OTHERS = "#8b949e"
_WIDTH, _LABEL_WIDTH, _VALUE_WIDTH = 760, 190, 110
_ROW_HEIGHT, _BAR_HEIGHT, _TITLE_HEIGHT = 22, 14, 34


@dataclass(frozen=True)
class Row:
    """One bar; a value below 0, which only noise gives, is drawn as 0."""

    label: str
    value: float
    text: str
    ours: bool


@dataclass(frozen=True)
class Panel:
    """Bars on one scale, which begins at 0."""

    title: str
    rows: Sequence[Row]


def svg(panels: Sequence[Panel], title: str) -> str:
    """The chart; `title` is for those who cannot see it."""
    lines: list[str] = []
    top = 0
    for panel in panels:
        top += _TITLE_HEIGHT
        lines.append(f'<text x="0" y="{top - 12}" font-weight="600">{escape(panel.title)}</text>')
        largest = max((row.value for row in panel.rows), default=0.0)
        for row in panel.rows:
            lines += _bar(row, top, largest)
            top += _ROW_HEIGHT
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + 6}" '
        f'width="{_WIDTH}" height="{top + 6}" role="img" font-size="13" fill="{_TEXT}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
        f"<title>{escape(title)}</title>\n{body}\n</svg>\n"
    )


def _bar(row: Row, top: int, largest: float) -> list[str]:
    room = _WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    width = max(room * max(row.value, 0.0) / largest if largest > 0 else 0.0, 1.0)
    baseline = top + _BAR_HEIGHT - 2
    return [
        f'<text x="{_LABEL_WIDTH - 10}" y="{baseline}" text-anchor="end">'
        f"{escape(row.label)}</text>",
        f'<rect x="{_LABEL_WIDTH}" y="{top}" width="{width:.1f}" height="{_BAR_HEIGHT}" rx="2" '
        f'fill="{_OURS if row.ours else _OTHERS}"/>',
        f'<text x="{_LABEL_WIDTH + width + 8:.1f}" y="{baseline}">{escape(row.text)}</text>',
    ]
