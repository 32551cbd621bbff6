"""The part of a summary that is about activations: which sites have something wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pertoken.quantity import count_text, name_text, percent_text, plural_text
from pertoken.summary_block import Block, step_text

_SITES_SHOWN = 12


def activation_block(data: Mapping[str, Any]) -> Block:
    """Put what was observed into words; an empty block where nothing was."""
    activations = data.get("activations")
    if not activations:
        return Block("Activations")
    sites = activations["unhealthy_sites"]
    counted = (
        f"{plural_text(activations['observations'], 'observation')} of "
        f"{plural_text(activations['sites'], 'site')}"
    )
    lines = [f"{counted}; {'something is wrong with these:' if sites else 'nothing is wrong.'}"]
    first = activations["first_nonfinite"]
    if first is not None:
        token = f"token {first['token']}" if first["token"] >= 0 else "an unknown token"
        lines.append(
            f"First NaN or infinity seen: {name_text(first['site'])}, in step "
            f"{step_text(first['step'])}, at {token}."
        )
    if len(sites) > _SITES_SHOWN:
        lines.append(f"The first {_SITES_SHOWN} of {len(sites)} sites:")
    columns = ("site", "observations", "NaN", "infinite", "saturated", "dead", "of outputs")
    keys = ("observations", "nans", "infs", "saturated", "dead")
    rows = tuple(
        (
            name_text(site["site"]),
            *(count_text(site[key]) for key in keys),
            "-" if site["share"] is None else percent_text(site["share"]),
        )
        for site in sites[:_SITES_SHOWN]
    )
    if not rows:
        return Block("Activations", tuple(lines))
    return Block("Activations", tuple(lines), columns, rows, frozenset(columns[1:]))
