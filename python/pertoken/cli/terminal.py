"""How a subcommand shows a summary or a part: in colour on a terminal, else as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pertoken.summary import Summary
    from pertoken.summary_block import Block


def show(summary: Summary) -> None:
    """Writes `summary` to stdout."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(summary)
    else:
        click.echo(str(summary))


def show_blocks(blocks: Sequence[Block]) -> None:
    """Writes parts of a summary to stdout."""
    from rich.console import Console

    from pertoken.summary_text import blocks_text, rich_group

    console = Console()
    if console.is_terminal:
        console.print(rich_group(blocks))
    else:
        click.echo(blocks_text(blocks))
