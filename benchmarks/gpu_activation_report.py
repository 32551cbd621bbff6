"""The section of the performance page on observing activations on a GPU."""

from __future__ import annotations

from typing import Any

from figure_text import ns_text, percent_text
from lost import lost_text
from page_parts import case_text, estimate_text, table

OFF, SPANS_OFF = "activations, switched off", "spans, switched off"


def section(activations: dict[str, Any]) -> str:
    """The section, from what `gpu_activations.py` measured."""
    text = (
        "### Observing activations\n\n"
        'The same decodes with `activations="layers"`, and with hooks on the same modules that '
        "take torch.histc, aminmax, mean, std and\nthe number of values that are not finite. "
        f"{activations['rounds']} rounds of {activations['steps_a_block']} steps, interleaved. "
        "`switched off` is a graph captured while\nthat was recorded, and replayed while nothing "
        f"is. In graphs, hooks in 1 step of {activations['every']} are those of a second graph."
    )
    columns = ("variant", "step", "added to the step", "added")
    for case in activations["cases"]:
        rows = [
            (
                name,
                ns_text(variant["step_ns"]["median"]),
                estimate_text(variant["ratio"], percent_text),
                estimate_text(variant["added_ns"], ns_text),
            )
            for name, variant in case["variants"].items()
        ]
        text += (
            f"\n\n#### Activations, {case_text(case)}\n\n"
            + table(columns, rows)
            + f"\n\n{case['sites']} sites, {case['values_a_step']:,} values a step. Observing a "
            f"step takes {ns_text(case['observe_ns_a_step'])} of the host, by its own account"
            f"{_launch_text(case)}. Not observed: {lost_text(list(case['lost'].values()))}."
        )
    return text


def _launch_text(case: dict[str, Any]) -> str:
    """What a launch that is switched off takes of a replay: beside stamps that are, too."""
    if OFF not in case["variants"]:
        return ""
    off, spans = (case["variants"][name]["added_ns"]["median"] for name in (OFF, SPANS_OFF))
    return f"; a launch that is switched off, {ns_text((off - spans) / case['sites'])} of a replay"
