"""`pertoken run SCRIPT`: profiles a program as it is, and the processes that it starts.

The interpreter is started anew in this process, with `PERTOKEN_PROFILE` in its environment: so the
program has the arguments, path, signals, tracebacks and exit code that `python SCRIPT` gives it.
"""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

import pertoken
from pertoken.autostart_options import VARIABLE, AutostartOptions, memory_size
from pertoken.cli.arguments import FiniteRange, text_of
from pertoken.errors import PertokenError

AUTOSTART_FILE = "pertoken_autostart.pth"


def _check_memory(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        return memory_size(value)
    except PertokenError as error:
        raise click.BadParameter(str(error)) from error


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-m", "--module", is_flag=True, help="SCRIPT is a module, as with python -m.")
@click.option(
    "-o",
    "--output",
    default=AutostartOptions.output,
    show_default=True,
    callback=text_of,
    help="Where the profiles go: a file that ends in .pertoken, else a folder.",
)
@click.option(
    "--modules",
    default=AutostartOptions.modules,
    show_default=True,
    callback=text_of,
    help="Which modules get spans: root, layers, all, or a glob pattern.",
)
@click.option(
    "--memory-limit",
    default="256M",
    show_default=True,
    callback=_check_memory,
    help="How much a recording may hold, such as 64M or 1G.",
)
@click.option("--chrome", is_flag=True, help="Write a trace for Perfetto beside each profile.")
@click.option(
    "--summary/--no-summary",
    default=True,
    show_default=True,
    help="Print the summary to stderr at the end.",
)
@click.option(
    "--log-interval",
    type=FiniteRange(min=0, max=1e9),
    default=0,
    metavar="SECONDS",
    help="How often to log a line of status, with what recording costs.",
)
@click.option(
    "--spool",
    callback=text_of,
    metavar="DIR",
    help="Leave what is recorded in DIR as well, for pertoken recover when SCRIPT is killed.",
)
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(module: bool, script: str, args: tuple[str, ...], **options: Any) -> None:
    """Run SCRIPT as python would, and profile the models that it runs.

    Each process that SCRIPT starts is profiled, too. Each writes files of its own when it ends.
    PERTOKEN=0 in the environment runs SCRIPT without any of this.
    """
    if not module and _is_interpreter(script):
        raise click.UsageError(
            f"give the script, not the interpreter: pertoken run {args[0] if args else 'SCRIPT'}"
        )
    environment = dict(os.environ)
    if environment.get("PERTOKEN") != "0":
        environment[VARIABLE] = AutostartOptions(**options).text()
        if not _starts_by_itself():
            _start_by_path(environment)
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    how = ["-m"] if module else []
    os.execve(sys.executable, [sys.executable, *flags, *how, script, *args], environment)


def _is_interpreter(script: str) -> bool:
    """Whether it is `python`, which other profilers want in front, and no file of that name."""
    return re.fullmatch(r"python[\d.]*", Path(script).name) is not None and (
        not Path(script).exists() or os.access(script, os.X_OK)
    )


def _starts_by_itself() -> bool:
    """Whether an interpreter of this environment reads our `.pth` file."""
    if sys.flags.no_site:
        return False
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return any(os.path.exists(os.path.join(folder, AUTOSTART_FILE)) for folder in folders)


def _start_by_path(environment: dict[str, str]) -> None:
    package = Path(pertoken.__file__).parent
    before = environment.get("PYTHONPATH", "")
    ours = [str(package / "bootstrap"), *filter(None, [before]), str(package.parent)]
    environment["PYTHONPATH"] = os.pathsep.join(ours)
