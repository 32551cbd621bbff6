"""The bars of budgets that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from bar import Bar, exact
from figure_text import ns_text, share_text

_SMALLEST = 0.002


def _accounted(budget: float) -> Callable[[Any], dict[str, float]]:
    """The largest share of any selection under any load."""

    def read(budgets: Any) -> dict[str, float]:
        cases = [by_budget[f"{budget:g}"] for by_budget in budgets["accounted"].values()]
        shares = (load["share"] for own in cases for load in own)
        largest: dict[str, float] = max(shares, key=lambda share: share["median"])
        return largest

    return read


def _proved(budget: float) -> Callable[[Any], dict[str, float]]:
    """The upper end of what the experiment found, if it found one."""

    def read(budgets: Any) -> dict[str, float]:
        high = budgets["proved"][f"{budget:g}"]["high"]
        return exact(math.inf if high is None else high)

    return read


def _undetailed_step(budgets: Any) -> dict[str, float]:
    """The largest mean cost of a step without detail under any load, where nearly all are such."""
    cases = [by_budget[f"{_SMALLEST:g}"] for by_budget in budgets["accounted"].values()]
    loads = [load for own in cases for load in own if load["undetailed_steps"]]
    return exact(max(load["undetailed_ns"] for load in loads))


BUDGET_BARS = (
    *(
        Bar(
            f"accounted under a budget of {share_text(budget)}, 200 steps under the worst load",
            "sampler_budget",
            _accounted(budget),
            budget,
            share_text,
        )
        for budget in (_SMALLEST, 0.01, 0.05)
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
        _undetailed_step,
        1000,
        ns_text,
    ),
)
