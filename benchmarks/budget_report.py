"""The section of the performance page on budgets."""

from __future__ import annotations

from typing import Any

from figure_text import ns_text, share_text
from page_parts import table


def section(budgets: dict[str, Any]) -> str:
    """The section, from what `sampler_budget.py` measured."""
    rows = [
        (
            selection,
            share_text(float(budget)),
            *(share_text(load["share"]) for load in loads),
            ns_text(loads[-1]["plain_ns"]),
        )
        for selection, by_budget in budgets["accounted"].items()
        for budget, loads in by_budget.items()
    ]
    loads = next(iter(next(iter(budgets["accounted"].values())).values()))
    times = [ns_text(load["step_ns"]) for load in loads]
    columns = (
        "selected",
        "budget",
        f"from a cold start ({times[0]} a step)",
        f"then a larger load ({times[1]})",
        f"and the first again ({times[2]})",
        "a step without detail",
    )
    proofs = [
        (
            share_text(float(budget)),
            proof["verdict"],
            f"{proof['pairs']:,}" + _block_text(proof.get("block_calls")),
            f"{_bound_text(proof['low'])} to {_bound_text(proof['high'])}",
        )
        for budget, proof in budgets["proved"].items()
    ]
    return (
        "## Budgets\n\n"
        "What recording the same model in a decode loop by hand is accounted at, "
        f"{budgets['steps']} steps under each load,\nby themselves; `observed` means that the "
        "outputs of the layers are observed as well.\n\n"
        + table(columns, rows)
        + "\n\nBy experiment (`measure_overhead(sampled=True)`, all modules), what the mean step "
        "takes longer, valid at every look:\n\n"
        + table(("budget", "verdict", "pairs of blocks", "added, 95 %"), proofs)
        + _calibrated_text(budgets)
        + "\n\nTo prove a budget of 0.2 % takes some 30,000 pairs."
    )


def _calibrated_text(budgets: dict[str, Any]) -> str:
    """What is to be known of results from before the root was timed in its steps."""
    if budgets.get("root_is_timed"):
        return ""
    return (
        "\n\nIn this run a step without detail was accounted as calibrated. Since then it is timed "
        "in each step, and takes longer:\n[what it takes](internals.md#in-the-caches)."
    )


def _block_text(calls: int | None) -> str:
    return "" if calls is None else f" of {calls} calls"


def _bound_text(value: float | None) -> str:
    return "any" if value is None else share_text(value)
