"""The section of the performance page on observing activations."""

from __future__ import annotations

from typing import Any

from figure_text import ns_text, percent_text
from page_parts import estimate_text, table


def section(activations: dict[str, Any]) -> str:
    """The section, from what `activations.py` measured."""
    sites = activations["sites"]
    rows = [
        (
            name,
            ns_text(variant["step_ns"]["median"]),
            estimate_text(variant["ratio"], percent_text),
            ns_text(variant["added_ns"]["median"]),
        )
        for name, variant in activations["variants"].items()
    ]
    columns = ("variant", "step", "added to the step", "added")
    return (
        "## Observing activations\n\n"
        f'The same model through `generate()`, {sites} sites (`activations="layers"`) with '
        f"{activations['values_a_step']:,} values a step,\n{activations['rounds']} rounds of "
        f"{activations['steps_a_block']} decode steps. The hooks stand on the same modules and "
        "take torch.histc, aminmax, mean, std\nand the number of values that are not finite; "
        "pertoken has all of this in one histogram, and spans besides.\n\n"
        + table(columns, rows)
        + f"\n\nOne observation takes {ns_text(activations['observe_ns_a_site'])} of the model's "
        "thread, by its own account (`steps.observe_ns`)."
    )
