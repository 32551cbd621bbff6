"""The bars that the results are held against, and how each figure is read from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bar import CONTROL, Bar, Verdict, exact
from budget_bars import BUDGET_BARS
from figure_text import bytes_text, factor_text, ns_text, percent_text, rate_text
from long_run_bars import LONG_RUN_BARS
from tensor_bars import ACTIVATION_BARS, LOGIT_BARS, TENSOR_BARS

Results = dict[str, Any]
RECORDED = "pertoken all"


def _worst(estimate: dict[str, float]) -> dict[str, float]:
    """The worst of the repeats in place of their median: a promise of at most holds for each."""
    return {**estimate, "median": estimate["worst"]}


def _per_call(way: str, variant: str) -> Callable[[Any], dict[str, float]]:
    """What a variant adds to a module call."""

    def read(decode: Any) -> dict[str, float]:
        result = decode["ways"][way]
        added = result["variants"][variant]["added_ns"]
        return {key: added[key] / result["calls_a_step"] for key in ("median", "low", "high")}

    return read


def _ratio(way: str, variant: str) -> Callable[[Any], dict[str, float]]:
    """A variant's step, to the step of nothing."""

    def read(decode: Any) -> dict[str, float]:
        ratio: dict[str, float] = decode["ways"][way]["variants"][variant]["ratio"]
        return ratio

    return read


def _wrapper_bar(what: str, way: str) -> Bar:
    return Bar(
        what,
        "decode_overhead",
        _per_call(way, RECORDED),
        300,
        ns_text,
        read_control=lambda decode: _per_call(way, CONTROL)(decode)["median"],
    )


def _step_bar(what: str, way: str) -> Bar:
    return Bar(
        what,
        "decode_overhead",
        _ratio(way, RECORDED),
        1.01,
        percent_text,
        read_control=lambda decode: _ratio(way, CONTROL)(decode)["median"],
        neutral=1.0,
    )


BARS = (
    Bar(
        "ring push with its timestamp, against a bare clock read",
        "native_micro",
        lambda native: native["operations"]["push"]["ratio"],
        1.3,
        factor_text,
    ),
    Bar(
        "the same while a consumer drains the ring",
        "native_micro",
        lambda native: native["operations"]["push_live"]["ratio"],
        1.3,
        factor_text,
    ),
    _wrapper_bar("wrapper in a real decode, all in, a module call", "generate"),
    _wrapper_bar("the same in a decode loop by hand", "by_hand"),
    Bar(
        "a step's own bookkeeping in the root wrapper",
        "call_cost",
        lambda cost: cost["root"]["pertoken"]["added_ns"],
        1000,
        ns_text,
    ),
    _step_bar("every module of every token, through generate()", "generate"),
    _step_bar("the same in a decode loop by hand", "by_hand"),
    Bar(
        "memory a span in the native store, all in",
        "store_memory",
        lambda store: exact(store["bytes_a_span"]),
        32,
        bytes_text,
    ),
    Bar(
        "stop() after a million spans, worst repeat",
        "stop_latency",
        lambda stop: _worst(stop["stop_ns"]),
        50e6,
        ns_text,
    ),
    Bar(
        "Chrome export to .json, events a second",
        "export_speed",
        lambda export: export["writers"]["pertoken_json"]["events_a_second"],
        2e6,
        rate_text,
        at_least=True,
    ),
    Bar(
        "the same against torch.profiler's own export",
        "export_speed",
        lambda export: export["times_torch"],
        4,
        factor_text,
        at_least=True,
    ),
    *TENSOR_BARS,
    *ACTIVATION_BARS,
    *LOGIT_BARS,
    *LONG_RUN_BARS,
    *BUDGET_BARS,
)


def verdicts(results: Results, bars: Iterable[Bar] = BARS) -> Iterator[Verdict]:
    """Every bar whose benchmark is part of the results."""
    for bar in bars:
        part = results["benchmarks"].get(bar.benchmark)
        if part is not None:
            measured = bar.read(part)
            if measured is not None:
                control = None if bar.read_control is None else bar.read_control(part)
                yield Verdict(bar, measured, control)
