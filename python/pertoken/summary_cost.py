"""What a profile says of the cost of its recording: `meta["cost"]` of each process, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pertoken.analysis.process_names import distinct_names_of
from pertoken.quantity import count_text, name_text, percent_text
from pertoken.result import Profile


def stated_costs(profile: Profile) -> list[dict[str, Any]]:
    """What each process states of its cost, those left out that state nothing.

    Returns:
        {process, budget, share, low, high, pairs, rates} for each: `budget`, `low` and `high` may
        be None, the bounds until pairs have shown the cost of all that steps got; `rates` is by
        kind of step and detail, empty where nothing was sampled. Shares are of the time of the
        steps.
    """
    metas = profile.meta.get("processes") or [profile.meta]
    costs = []
    for name, meta in zip(distinct_names_of(profile), metas, strict=False):
        cost = _mapping(_mapping(meta).get("cost"))
        share = _number(cost.get("share"))
        if share is None:
            continue
        pairs = _number(cost.get("pairs"))
        rates = {
            str(kind): {
                str(detail): rate
                for detail, value in _mapping(_mapping(row).get("rates")).items()
                if (rate := _number(value)) is not None
            }
            for kind, row in _mapping(cost.get("kinds")).items()
        }
        costs.append(
            {
                "process": name,
                "budget": _number(cost.get("budget")),
                "share": share,
                "low": _number(cost.get("low")),
                "high": _number(cost.get("high")),
                "pairs": int(pairs or 0),
                "rates": {kind: own for kind, own in rates.items() if own},
            }
        )
    return costs


def cost_text(cost: Mapping[str, Any]) -> str:
    """One sentence for what `stated_costs` gave of one process."""
    text = f"Recording cost about {percent_text(cost['share'])} of the steps' time (an estimate"
    if cost["low"] is not None and cost["high"] is not None:
        text += (
            f"; {percent_text(cost['low'])} to {percent_text(cost['high'])} by "
            f"{count_text(cost['pairs'])} pairs of steps"
        )
    text += ")"
    if cost["budget"] is not None:
        text += f", of a budget of {percent_text(cost['budget'])}"
    if cost["rates"]:
        text += f"; sampled: {rates_text(cost['rates'])}"
    return text + "."


def rates_text(rates: Mapping[str, Mapping[str, float]]) -> str:
    """Probabilities by kind of step and detail: ``decode layers 0.25, all 0.06``."""
    return "; ".join(
        f"{name_text(kind)} "
        + ", ".join(f"{name_text(detail)} {rate:.2g}" for detail, rate in own.items())
        for kind, own in rates.items()
    )


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    """A number from a file, if it is one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
