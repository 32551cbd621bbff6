"""A summary on a terminal: by rich where it is installed, else in plain columns."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pertoken.summary_block import Block
from pertoken.summary_layout import summary_blocks

if TYPE_CHECKING:
    import rich.console

_WIDTH_WITHOUT_TERMINAL = 100
_LEAST_WIDTH = 60


def summary_text(data: Mapping[str, Any]) -> str:
    """Render a summary's data without colour, as wide as the terminal or 100 columns."""
    return blocks_text(summary_blocks(data))


def blocks_text(blocks: Sequence[Block]) -> str:
    """Render blocks without colour, as wide as the terminal or 100 columns."""
    try:
        from rich.console import Console
    except ImportError:
        return plain_text(blocks)
    stream = io.StringIO()
    Console(
        file=stream,
        width=_width(),
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
    ).print(rich_group(blocks))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def rich_group(blocks: Sequence[Block]) -> rich.console.Group:
    """Build what a rich console prints."""
    from rich.box import ASCII, SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    box = SIMPLE_HEAD if encoding.lower().startswith("utf") else ASCII
    parts: list[Text | Table] = []
    for block in blocks:
        if parts and isinstance(parts[-1], Text):
            parts.append(Text(""))
        parts.append(Text(block.title, style="bold"))
        # Text, never markup: a bracket in a module's name is a bracket.
        parts.extend(Text(line, overflow="fold") for line in block.lines)
        if not block.rows:
            continue
        table = Table(box=box, pad_edge=False, padding=(0, 1), header_style="bold")
        for column in block.columns:
            numeric = column in block.numeric
            table.add_column(
                column,
                justify="right" if numeric else "left",
                no_wrap=numeric,
                overflow="fold",
            )
        for row in block.rows:
            table.add_row(*(Text(cell, overflow="fold") for cell in row))
        parts.append(table)
    return Group(*parts)


def plain_text(blocks: Sequence[Block]) -> str:
    """Render blocks in plain columns, without rich; no line is cut."""
    return "\n\n".join(_plain_block(block) for block in blocks)


def _plain_block(block: Block) -> str:
    lines = [block.title, *block.lines]
    if block.rows:
        grid = [block.columns, *block.rows]
        widths = [
            max(len(line) for row in grid for line in row[i].split("\n"))
            for i in range(len(block.columns))
        ]
        for row in grid:
            cells = [cell.split("\n") for cell in row]
            for number in range(max(len(cell) for cell in cells)):
                texts = [cell[number] if number < len(cell) else "" for cell in cells]
                aligned = (
                    text.rjust(width) if column in block.numeric else text.ljust(width)
                    for text, width, column in zip(texts, widths, block.columns, strict=True)
                )
                lines.append(f"  {'  '.join(aligned)}".rstrip())
    return "\n".join(lines)


def _width() -> int:
    columns = shutil.get_terminal_size((_WIDTH_WITHOUT_TERMINAL, 24)).columns
    return max(columns, _LEAST_WIDTH)
