"""The bars of what recording adds on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bar import Bar, exact
from figure_text import ns_text, percent_text

BUDGETED = "pertoken layers, budget 1%"


def _cases(overhead: Any, mode: str | None, shape: str | None = None) -> list[Any]:
    if not overhead["measured"]:
        return []
    return [
        case
        for case in overhead["cases"]
        if mode in (None, case["mode"]) and shape in (None, case["shape"])
    ]


def _worst(
    variant: str, figure: str, mode: str | None, shape: str | None = None
) -> Callable[[Any], dict[str, float] | None]:
    """An estimate of a variant, in the case in which it is the largest."""

    def read(overhead: Any) -> dict[str, float] | None:
        found = [case["variants"][variant][figure] for case in _cases(overhead, mode, shape)]
        return max(found, key=lambda estimate: estimate["median"], default=None)

    return read


def _ratio_bar(what: str, variant: str, limit: float, mode: str, shape: str | None) -> Bar:
    return Bar(
        what,
        "gpu_overhead",
        _worst(variant, "middle_ratio", mode, shape),
        limit,
        percent_text,
    )


def _stamp(overhead: Any) -> dict[str, float] | None:
    """What a stamp that writes adds to a replay, where it is most."""
    found = []
    for case in _cases(overhead, "graph"):
        if case["boundaries_a_step"]:
            added = case["variants"]["pertoken layers"]["added_ns"]
            found.append(
                {key: added[key] / case["boundaries_a_step"] for key in ("median", "low", "high")}
            )
    return max(found, key=lambda estimate: estimate["median"], default=None)


def _stop(overhead: Any) -> dict[str, float] | None:
    longest = max((case["stop_ns"] for case in _cases(overhead, None)), default=None)
    return None if longest is None else exact(longest)


GPU_BARS = (
    *(
        _ratio_bar(f"root, {mode}, {shape}, median step", "pertoken root", limit, mode, shape)
        for shape, limit in (("8B", 1.001), ("1B", 1.005))
        for mode in ("eager", "graph")
    ),
    _ratio_bar("layers on every eager step, 8B", "pertoken layers", 1.01, "eager", "8B"),
    _ratio_bar("layers in graphs at the default sampling", BUDGETED, 1.005, "graph", None),
    Bar("a stamp in a graph, on every replay", "gpu_overhead", _stamp, 1500, ns_text),
    Bar(
        "99th percentile of steps, root, worst case",
        "gpu_overhead",
        _worst("pertoken root", "tail_ratio", None),
        1.01,
        percent_text,
    ),
    Bar("stop() behind a decode, the longest", "gpu_overhead", _stop, 10e6, ns_text),
)
