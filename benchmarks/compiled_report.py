"""The section of the performance page on layers inside compiled models."""

from __future__ import annotations

from typing import Any

from figure_text import ns_text, percent_text
from page_parts import estimate_text, table


def section(compiled: dict[str, Any]) -> str:
    """The section, from what `compiled_layers.py` measured."""
    operators = compiled["operators_a_step"]
    rows = [
        (
            name,
            ns_text(variant["step_ns"]["median"]),
            estimate_text(variant["added_ns"], ns_text),
            percent_text(variant["ratio"]["median"]),
            ns_text(variant["added_ns"]["median"] / operators),
        )
        for name, variant in compiled["variants"].items()
    ]
    columns = ("variant", "step", "added", "to the step", f"an operator ({operators} a step)")
    return (
        "## Layers inside a compiled model\n\n"
        f"A step of {compiled['blocks']} feed-forward blocks of {compiled['width']}, compiled by "
        "inductor for the CPU at batch 1, against the same compiled\nwith "
        "`compiled_layers=True`: idle where nobody records any more. "
        f"{compiled['rounds']} rounds of {compiled['steps_a_block']} steps. "
        "Part of what is added is\nfusion that the operators forbid; outputs differ by at most "
        f"{compiled['largest_difference']:.1g}.\n\n" + table(columns, rows)
    )
