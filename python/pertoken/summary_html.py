"""A summary in a notebook: tables of HTML, with every name escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from pertoken.summary_block import Block
from pertoken.summary_layout import summary_blocks


def summary_html(data: Mapping[str, Any]) -> str:
    """Render a summary's data as an HTML fragment."""
    return f"<div>{''.join(_block_html(block) for block in summary_blocks(data))}</div>"


def _block_html(block: Block) -> str:
    parts = [f"<h4>{html.escape(block.title)}</h4>"]
    parts.extend(f"<p>{html.escape(line)}</p>" for line in block.lines)
    if block.rows:
        head = "".join(_cell("th", column, column in block.numeric) for column in block.columns)
        body = "".join(
            "<tr>"
            + "".join(
                _cell("td", cell, column in block.numeric)
                for cell, column in zip(row, block.columns, strict=True)
            )
            + "</tr>"
            for row in block.rows
        )
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    return "".join(parts)


def _cell(tag: str, text: str, numeric: bool) -> str:
    align = "right" if numeric else "left"
    content = html.escape(text).replace("\n", "<br>")
    return f'<{tag} style="text-align:{align}">{content}</{tag}>'
