"""The section of the performance page on histograms of tensors on a GPU."""

from __future__ import annotations

from typing import Any

from figure_text import bandwidth_text, factor_text, ns_text, share_text
from page_parts import estimate_text, table


def section(stats: dict[str, Any]) -> str:
    """The section, from what `gpu_stats.py` measured."""
    peers = [
        name
        for name in dict.fromkeys(name for case in stats["cases"] for name in case["timed"])
        if name not in ("pertoken", "copy")
    ]
    rows = [
        (
            f"{case['values']:,}",
            case["dtype"],
            case["data"],
            estimate_text(case["timed"]["pertoken"]["gpu_ns"], ns_text),
            bandwidth_text(case["read_bytes_per_second"]["median"]),
            estimate_text(case["share_of_copy_bandwidth"], share_text),
            *(_behind(case["timed"].get(peer)) for peer in peers),
        )
        for case in stats["cases"]
    ]
    columns = (
        "values",
        "format",
        "data",
        "on the GPU",
        "read a second",
        "of the copy's bandwidth",
        *(f"{peer}, its time to that" for peer in peers),
    )
    arrays = stats["arrays"] or "CuPy could not be imported"
    return (
        "### Histograms of tensors\n\n"
        "`Histogram.from_values` of a tensor that lies there: the time of its kernels alone, "
        f"interleaved in random order, {stats['rounds']} rounds.\n"
        "A share of bandwidth is of the bytes that a copy moves in a second, reads and writes. "
        "torch takes histc, aminmax, mean, std and isnan;\n"
        f"histograms of arrays by: {arrays}.\n\n" + table(columns, rows)
    )


def _behind(figures: dict[str, Any] | None) -> str:
    return "-" if figures is None else estimate_text(figures["times_slower"], factor_text)
