"""`pertoken summary FILE`: the summary of a saved profile, as text or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import click

import pertoken
from pertoken.cli.terminal import show
from pertoken.summary import Summary


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print plain data, as one JSON object.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How many of the slowest tokens and hottest sites to list.",
)
def command(file: Path, as_json: bool, top: int) -> None:
    """Print the summary of FILE: latencies, slowest tokens, hottest modules, what is missing."""
    summary = Summary.of(pertoken.load(file), tokens=top, sites=top)
    if as_json:
        click.echo(json.dumps(summary.as_dict(), indent=2, allow_nan=False))
    else:
        show(summary)
