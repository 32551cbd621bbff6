"""`pertoken merge FILE...`: profiles of several processes as one, and who holds the others up."""

from __future__ import annotations

import json
from pathlib import Path

import click

import pertoken
from pertoken.cli.terminal import show_blocks
from pertoken.errors import PertokenError
from pertoken.result import Profile
from pertoken.summary import Summary
from pertoken.summary_block import Block
from pertoken.summary_processes import process_blocks


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the merged profile.",
)
@click.option(
    "--chrome",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a trace of all processes, too, for ui.perfetto.dev. .gz compresses.",
)
@click.option("--json", "as_json", is_flag=True, help="Print plain data, as one JSON object.")
@click.option("-f", "--force", is_flag=True, help="Replace outputs that exist.")
def command(
    files: tuple[Path, ...], output: Path, chrome: Path | None, as_json: bool, force: bool
) -> None:
    """Join the profiles FILES, one of each process, on one time axis.

    Prints how the clocks were joined, with the error, and which ranks the others wait for. The
    processes are numbered by rank where all ranks are known, else in the order given. Outputs that
    exist are left alone unless --force is given.
    """
    if len(files) < 2:
        raise click.UsageError("give the files of two processes at least")
    _check_inputs(files)
    outputs = [output] if chrome is None else [output, chrome]
    _check_outputs(files, outputs, force)
    profiles = [pertoken.load(file) for file in files]
    if all(_rank(profile) >= 0 for profile in profiles):
        profiles.sort(key=_rank)
    merged = pertoken.merge(profiles)
    merged.save(output)
    if chrome is not None:
        merged.export_chrome_trace(chrome)
    data = Summary.of(merged).as_dict()
    if as_json:
        told = {key: data[key] for key in ("processes", "stragglers")}
        click.echo(json.dumps(told, indent=2, allow_nan=False))
        return
    reasons = tuple(data["losses"].get("reasons") or ())
    blocks = [*process_blocks(data), Block("What is missing or uncertain", reasons)]
    show_blocks([block for block in blocks if block.lines or block.rows])
    for path in outputs:
        click.echo(f"wrote {path}")


def _check_inputs(files: tuple[Path, ...]) -> None:
    seen: dict[Path, Path] = {}
    for file in files:
        first = seen.setdefault(file.resolve(), file)
        if first is not file:
            raise PertokenError(f"{file}: given twice; give the file of each process once")


def _check_outputs(files: tuple[Path, ...], outputs: list[Path], force: bool) -> None:
    inputs = {file.resolve() for file in files}
    for path in outputs:
        if path.resolve() in inputs:
            raise PertokenError(f"{path}: the output would replace one of the profiles")
        if path.exists() and not force:
            raise PertokenError(f"{path}: exists already; --force replaces it")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise PertokenError(f"{outputs[0]}: given for two outputs")


def _rank(profile: Profile) -> int:
    """The rank of the first process; -1 where it is unknown."""
    return int(profile.processes["rank"][0])
