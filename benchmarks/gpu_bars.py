"""The bars of what pertoken takes on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from bar import CONTROL, Bar, exact
from figure_text import factor_text, ns_text, percent_text, share_text

BUDGETED = "pertoken layers, budget 1%"
EVERY_STEP = "logits, every step"


def _measured(part: Any, cases: str) -> list[Any]:
    """Of a benchmark; none where it was not measured."""
    return list(part[cases]) if part["measured"] else []


def _cases(overhead: Any, mode: str | None, shape: str | None = None) -> list[Any]:
    return [
        case
        for case in _measured(overhead, "cases")
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


def _logit_cases(way: str, logits: Any) -> list[Any]:
    """Decodes in that way, the one first to whose step reading every step's logits adds most."""
    cases = [case for case in _measured(logits, "decode") if case["way"] == way]
    return sorted(cases, key=lambda case: -case["variants"][EVERY_STEP]["ratio"]["median"])


def _logit_step(way: str) -> Callable[[Any], dict[str, float] | None]:
    def read(logits: Any) -> dict[str, float] | None:
        cases = _logit_cases(way, logits)
        if any(case["lost"] for case in cases):
            return exact(math.inf)  # what was not read took no time
        return dict(cases[0]["variants"][EVERY_STEP]["ratio"]) if cases else None

    return read


def _logit_control(way: str) -> Callable[[Any], float]:
    return lambda logits: float(
        _logit_cases(way, logits)[0]["variants"][CONTROL]["ratio"]["median"]
    )


def _against_hooks(mode: str) -> Callable[[Any], dict[str, float] | None]:
    """How many times as much hooks with torch add to a step as observing does, where least."""

    def read(activations: Any) -> dict[str, float] | None:
        cases = _cases(activations, mode)
        if any(lost for case in cases for lost in case["lost"].values()):
            return exact(0.0)  # what was not observed took no time
        found = []
        for case in cases:
            ours = case["variants"]["activations, every step"]["added_ns"]
            hooks = case["variants"]["hooks with torch, every step"]["added_ns"]
            ends = zip(("median", "low", "high"), ("median", "high", "low"), strict=True)
            # What is lost in the noise counts as a nanosecond.
            found.append({end: hooks[end] / max(ours[other], 1.0) for end, other in ends})
        return min(found, key=lambda estimate: estimate["median"], default=None)

    return read


def _share(stats: Any) -> dict[str, float] | None:
    """Of the copy's bandwidth, for the kind of data on which it is least."""
    found = [
        case["share_of_copy_bandwidth"]
        for case in _measured(stats, "cases")
        if case["size"] == "large" and case["dtype"] == "bfloat16"
    ]
    return min(found, key=lambda estimate: estimate["median"], default=None)


def _decode_sized(stats: Any) -> dict[str, float] | None:
    """GPU time of a tensor of that size, where it is longest."""
    found = [
        case["timed"]["pertoken"]["gpu_ns"]
        for case in _measured(stats, "cases")
        if case["size"] == "decode"
    ]
    return max(found, key=lambda estimate: estimate["median"], default=None)


def _behind(peer: str, size: str | None) -> Callable[[Any], dict[str, float] | None]:
    """How many times as long a peer takes, where that is least; None where it did not run."""

    def read(stats: Any) -> dict[str, float] | None:
        found = [
            case["timed"][peer]["times_slower"]
            for case in _measured(stats, "cases")
            if peer in case["timed"] and size in (None, case["size"])
        ]
        return min(found, key=lambda estimate: estimate["median"], default=None)

    return read


GPU_BARS = (
    Bar(
        "share of a copy's bandwidth, 128 MiB of bfloat16, any data",
        "gpu_stats",
        _share,
        0.8,
        share_text,
        at_least=True,
    ),
    Bar("GPU time of a tensor of 32 x 4096, any data", "gpu_stats", _decode_sized, 3000, ns_text),
    *(
        Bar(
            f"{peer} on a GPU, to one launch of pertoken, {of}",
            "gpu_stats",
            _behind(name, size),
            limit,
            factor_text,
            at_least=True,
        )
        for peer, name in (
            ("torch histc + aminmax + mean + std + isnan", "torch"),
            ("cupy.histogram", "cupy.histogram"),
        )
        for of, size, limit in (("any size", None, 1), ("67 million values", "large", 5))
    ),
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
    *(
        Bar(
            f"reading the logits of every decode step, 1B, {name}, worst batch",
            "gpu_logits",
            _logit_step(way),
            1.02,
            percent_text,
            read_control=_logit_control(way),
            neutral=1.0,
        )
        for way, name in (("generate", "generate()"), ("by_hand", "by hand"))
    ),
    *(
        Bar(
            f"what hooks with torch add to a step on a GPU, to observing every step, {of}",
            "gpu_activations",
            _against_hooks(mode),
            1,
            factor_text,
            at_least=True,
        )
        for mode, of in (("eager", "eager"), ("graph", "in graphs"))
    ),
)
