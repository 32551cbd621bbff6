"""The section of the performance page on totals of a model that runs."""

from __future__ import annotations

from typing import Any

from figure_text import ns_text, percent_text
from page_parts import estimate_text, table


def section(totals: dict[str, Any]) -> str:
    """The section, from what `totals_snapshot.py` measured."""
    looks = [
        (
            name,
            ns_text(variant["step_ns"]["median"]),
            estimate_text(variant["ratio"], percent_text),
            percent_text(variant["middle_ratio"]["median"]),
            estimate_text(variant["tail_ratio"], percent_text),
        )
        for name, variant in totals["variants"].items()
    ]
    columns = (
        "another thread",
        "step",
        "added to the step",
        "to its median",
        "to its 99th percentile",
    )
    alone = [
        (
            f"{state['spans']:,}",
            *(
                f"{estimate_text(state[call], ns_text)}, at worst {ns_text(state[call]['worst'])}"
                for call in ("totals_ns", "result_ns")
            ),
        )
        for state in totals["alone"]
    ]
    return (
        "## Totals while the model runs\n\n"
        f"The decode by hand, every module recorded, while another thread looks every "
        f"{ns_text(totals['every_ns'])}:\n{totals['sites']} pairs of a site and a kind of step, "
        f"{totals['rounds']} rounds of {totals['steps_a_block']} steps. The thread needs the GIL, "
        "which\nthe model's thread gives up in each operator.\n\n"
        + table(columns, looks)
        + "\n\nWhat each call takes when nothing else runs:\n\n"
        + table(("spans held", "`totals()`", "`result()`"), alone)
    )
