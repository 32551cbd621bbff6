"""The bars of budgets that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from bar import Bar, exact
from figure_text import ns_text, share_text


def _accounted(budget: float) -> Callable[[Any], dict[str, float]]:
    """The largest share of any selection under any load."""

    def read(budgets: Any) -> dict[str, float]:
        loads = [by_budget[f"{budget:g}"] for by_budget in budgets["accounted"].values()]
        return exact(max(load["share"] for own in loads for load in own))

    return read


def _proved(budget: float) -> Callable[[Any], dict[str, float]]:
    """The upper end of what the experiment found, if it found one."""

    def read(budgets: Any) -> dict[str, float]:
        high = budgets["proved"][f"{budget:g}"]["high"]
        return exact(math.inf if high is None else high)

    return read


def _plain_step(budgets: Any) -> dict[str, float]:
    """The largest cost of a step without detail."""
    cases = [own for by_budget in budgets["accounted"].values() for own in by_budget.values()]
    return exact(max(load["plain_ns"] for own in cases for load in own))


BUDGET_BARS = (
    *(
        Bar(
            f"accounted under a budget of {share_text(budget)}, the worst 200 steps",
            "sampler_budget",
            _accounted(budget),
            budget,
            share_text,
        )
        for budget in (0.002, 0.01, 0.05)
    ),
    *(
        Bar(
            f"proved of a budget of {share_text(budget)}, the upper end of the interval",
            "sampler_budget",
            _proved(budget),
            budget,
            share_text,
        )
        for budget in (0.01, 0.05)
    ),
    Bar(
        "a step without detail, every module wrapped",
        "sampler_budget",
        _plain_step,
        1000,
        ns_text,
    ),
)
