"""`pertoken doctor`: how the package was built and what it found on this machine."""

from __future__ import annotations

import json

import click

_COLOURS = {"ok": "green", "warning": "yellow", "absent": "bright_black"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def command(as_json: bool) -> None:
    """Say how pertoken was built and what it found here.

    Each line is a thing that pertoken needs or can use, with the reason where it is absent. A
    missing GPU library is no error: the exit code is 1 only when the native module is not usable.
    """
    from pertoken.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        click.echo(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        width = max(len(check.name) for check in diagnosis.checks)
        for check in diagnosis.checks:
            status = click.style(f"{check.status:8}", fg=_COLOURS[check.status])
            text = ": ".join(filter(None, (check.detail, check.reason)))
            click.echo(f"{status} {check.name:{width}}  {text}")
    if diagnosis["package"].status == "absent":
        raise SystemExit(1)
