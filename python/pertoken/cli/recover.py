"""`pertoken recover DIR`: the profile of a process that was killed, from what it spooled."""

from __future__ import annotations

from pathlib import Path

import click

import pertoken
from pertoken.errors import PertokenError
from pertoken.quantity import plural_text
from pertoken.spool_folder import recordings_in


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the profile.",
)
@click.option("-f", "--force", is_flag=True, help="Replace the output if it exists.")
def command(folder: Path, output: Path, force: bool) -> None:
    """Recover the newest recording that is over from DIR, the folder of profile(spool=DIR).

    DIR may also be the folder of one recording in it. Nothing in DIR is changed. An output that
    exists is left alone unless --force is given.
    """
    if output.exists() and not force:
        raise PertokenError(f"{output}: exists already; --force replaces it")
    profile = pertoken.recover(folder)
    profile.save(output)
    counts = ", ".join(
        plural_text(len(table), noun)
        for table, noun in (
            (profile.requests, "request"),
            (profile.steps, "step"),
            (profile.spans, "span"),
        )
    )
    click.echo(f"wrote {output} ({profile.meta['model'].get('class', '')}, {counts})")
    for reason in profile.losses["reasons"]:
        click.echo(reason)
    found = recordings_in(folder)
    if len(found) > 1:
        click.echo(
            f"The newest that is over of {len(found)} recordings; give another by its folder:"
        )
        for path in found:
            click.echo(f"  {path}")
