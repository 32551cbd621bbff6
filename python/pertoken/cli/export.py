"""`pertoken export FILE --to FORMAT`: a saved profile, for another tool to open."""

from __future__ import annotations

from pathlib import Path

import click

import pertoken
from pertoken.errors import PertokenError

SUFFIXES = {"chrome": ".json"}


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "form",
    type=click.Choice(sorted(SUFFIXES)),
    required=True,
    help="chrome: a trace for ui.perfetto.dev and chrome://tracing.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write it; FILE with the format's suffix unless given. .gz compresses.",
)
@click.option("-f", "--force", is_flag=True, help="Replace the output if it exists.")
def command(file: Path, form: str, output: Path | None, force: bool) -> None:
    """Turn the profile FILE into another format.

    An output that exists is left alone unless --force is given.
    """
    target = output or file.with_suffix(SUFFIXES[form])
    if target.exists():
        if file.exists() and target.samefile(file):
            raise PertokenError(f"{target}: the output would replace the profile itself")
        if not force:
            raise PertokenError(f"{target}: exists already; --force replaces it")
    pertoken.load(file).export_chrome_trace(target)
    click.echo(f"wrote {target}")
