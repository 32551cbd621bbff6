"""The section of the performance page on histograms of tensors."""

from __future__ import annotations

from typing import Any

from figure_text import billions_text, factor_text, ns_text
from page_parts import estimate_text, table


def section(tensors: dict[str, Any]) -> str:
    """The section, from what `tensor_stats.py` measured."""
    rows = []
    for kind, works in tensors["kinds"].items():
        for name, figures in works.items():
            ours = name == "pertoken"
            ratio = "-" if ours else estimate_text(figures["times_slower"], factor_text)
            rate = estimate_text(figures["values_a_second"], billions_text)
            rows.append((kind, name, rate, ratio))
    decode = tensors["decode_sized"]
    small = ", ".join(
        f"{estimate_text(estimate, ns_text)} in {kind}" for kind, estimate in decode["ns"].items()
    )
    columns = ("values", "counted by", "values a second", "its time, to that of pertoken")
    return (
        "## Histograms of tensors\n\n"
        f"{tensors['values']:,} values in host memory (a quarter as many of float64), from a "
        "normal distribution unless said\notherwise; one thread, interleaved in random order, "
        f"{tensors['rounds']} rounds. pertoken counts exact buckets, zeros, NaNs,\ninfinities and "
        f"moments in one pass; torch and numpy count {tensors['bins']} equal bins, or moments.\n"
        f"`pertoken` is `Histogram.from_values` with {tensors['instruction_sets'][-1]}, the best "
        "that this processor has.\n\n"
        + table(columns, rows)
        + f"\n\nA tensor of {decode['values']:,} values takes {small}, all in."
    )
