"""Arguments that several subcommands take, checked before anything is loaded."""

from __future__ import annotations

import math
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """As `click.FloatRange`, which lets NaN through, and infinities where it has no bound."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number; whatever is none in the range is wrong usage."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def text_of(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str:
    """A callback: a text that is given must not be empty; one that is not given is."""
    if value is None:
        return ""
    if not value:
        raise click.BadParameter("is empty")
    return value
