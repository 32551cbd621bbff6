"""How a subcommand shows a summary: in colour on a terminal, as plain text anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pertoken.summary import Summary


def show(summary: Summary) -> None:
    """Writes `summary` to stdout."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(summary)
    else:
        click.echo(str(summary))
