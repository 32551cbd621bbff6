"""The section of the performance page on budgets."""

from __future__ import annotations

from typing import Any

from figure_text import ns_text, share_text
from page_parts import estimate_text, table


def section(budgets: dict[str, Any]) -> str:
    """The section, from what `sampler_budget.py` measured."""
    rows = [
        (
            selection,
            share_text(float(budget)),
            *(estimate_text(load["share"], share_text) for load in loads),
            " / ".join(_undetailed_text(load) for load in loads),
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
        "a step without detail, under each",
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
        "outputs of the layers are observed as well. Each is the median of\n"
        f"{budgets['repeats']} cold starts: of a small budget, one step that is observed takes a "
        "good part of what 200 may cost.\n\n"
        + table(columns, rows)
        + "\n\nBy experiment (`measure_overhead(sampled=True)`, all modules), what the mean step "
        "takes longer, valid at every look:\n\n"
        + table(("budget", "verdict", "pairs of blocks", "added, 95 %"), proofs)
        + "\n\nTo prove a budget of 0.2 % takes some 30,000 pairs."
    )


def _undetailed_text(load: dict[str, Any]) -> str:
    return ns_text(load["undetailed_ns"]) if load["undetailed_steps"] else "none"


def _block_text(calls: int | None) -> str:
    return "" if calls is None else f" of {calls} calls"


def _bound_text(value: float | None) -> str:
    return "any" if value is None else share_text(value)
