"""The `pertoken` command. Each subcommand is a file of this folder with an object `command`.

A subcommand's file is imported when it is run or asked for its help, so that `pertoken --help`
costs no more than click.
"""

from __future__ import annotations

from importlib import import_module
from typing import IO, Any, NoReturn

import click

from pertoken.errors import PertokenError

COMMANDS = {
    "demo": "Generate text with a tiny model and profile it.",
    "doctor": "Say how pertoken was built and what it finds here.",
    "export": "Turn a saved profile into another format.",
    "merge": "Join the profiles of several processes, and name stragglers.",
    "overhead": "Prove whether recording a model stays within a budget.",
    "recover": "Recover the profile of a process that was killed.",
    "run": "Run a script and profile the models in it.",
    "summary": "Print the summary of a saved profile.",
}

INTERRUPTED = 130


class OneLineError(click.ClickException):
    """A failure that a person can act on without a traceback; exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the message to `file`, stderr unless given."""
        click.echo(f"pertoken: error: {self.message}", file=file, err=file is None)


class LazyGroup(click.Group):
    """A group that imports a subcommand only when it is needed, and reports errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the subcommands, in alphabetical order."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand of that name; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"pertoken.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the subcommand; errors on purpose and of the system become one line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _exit_interrupted(ctx)
        except BrokenPipeError:
            raise
        except (PertokenError, OSError) as error:
            if ctx.params["debug"]:
                raise
            raise OneLineError(_one_line(error)) from error
        except ImportError as error:
            # What an interrupt becomes that hits while a native module is imported.
            if not isinstance(error.__cause__, KeyboardInterrupt):
                raise
            _exit_interrupted(ctx)


def _exit_interrupted(ctx: click.Context) -> NoReturn:
    click.echo("pertoken: interrupted", err=True)
    ctx.exit(INTERRUPTED)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pertoken", message="pertoken %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Per-token profiling of LLM inference in PyTorch.

    Exit codes: 0 when all went well, 1 for an error, 2 for wrong usage, 130 when interrupted;
    `overhead` has others besides.
    """
