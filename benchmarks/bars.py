"""The bars that the results are held against, and how each figure is read from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]
Format = Callable[[float], str]


@dataclass(frozen=True)
class Bar:
    """A limit on one figure: at most, or at least where `at_least` says so."""

    what: str
    benchmark: str  # the section of the results that the figure is in
    read: Callable[[Any], dict[str, float]]  # section -> median, low, high
    limit: float
    text: Format
    at_least: bool = False


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured."""

    bar: Bar
    measured: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether the median keeps the limit."""
        if self.bar.at_least:
            return self.measured["median"] >= self.bar.limit
        return self.measured["median"] <= self.bar.limit


def ns_text(value: float) -> str:
    """Writes a duration of up to a second."""
    for unit, factor in (("ms", 1e6), ("us", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} ns"


def factor_text(value: float) -> str:
    """Writes a ratio."""
    return f"{value:.2f} x" if value < 10 else f"{value:.1f} x"


def percent_text(value: float) -> str:
    """Writes a ratio to nothing as what it adds."""
    return f"{(value - 1) * 100:+.2f} %"


def bytes_text(value: float) -> str:
    """Writes a number of bytes."""
    return f"{value:.1f} bytes"


def rate_text(value: float) -> str:
    """Writes a rate of events."""
    return f"{value / 1e6:.2f} M/s"


def _exact(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value}


def _worst(estimate: dict[str, float]) -> dict[str, float]:
    """The worst of the repeats in place of their median: a promise of at most holds for each."""
    return {**estimate, "median": estimate["worst"]}


def _per_call(way: dict[str, Any]) -> dict[str, float]:
    added = way["variants"]["pertoken all"]["added_ns"]
    return {key: added[key] / way["calls_a_step"] for key in ("median", "low", "high")}


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
    Bar(
        "wrapper in a real decode, all in, a module call",
        "decode_overhead",
        lambda decode: _per_call(decode["ways"]["generate"]),
        300,
        ns_text,
    ),
    Bar(
        "the same in a decode loop by hand",
        "decode_overhead",
        lambda decode: _per_call(decode["ways"]["by_hand"]),
        300,
        ns_text,
    ),
    Bar(
        "a step's own bookkeeping in the root wrapper",
        "call_cost",
        lambda cost: cost["root"]["pertoken"]["added_ns"],
        1000,
        ns_text,
    ),
    Bar(
        "every module of every token, through generate()",
        "decode_overhead",
        lambda decode: decode["ways"]["generate"]["variants"]["pertoken all"]["ratio"],
        1.01,
        percent_text,
    ),
    Bar(
        "the same in a decode loop by hand",
        "decode_overhead",
        lambda decode: decode["ways"]["by_hand"]["variants"]["pertoken all"]["ratio"],
        1.01,
        percent_text,
    ),
    Bar(
        "memory a span in the native store, all in",
        "store_memory",
        lambda store: _exact(store["bytes_a_span"]),
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
)


def verdicts(results: Results) -> Iterator[Verdict]:
    """Every bar whose benchmark is part of the results."""
    for bar in BARS:
        if bar.benchmark in results["benchmarks"]:
            yield Verdict(bar, bar.read(results["benchmarks"][bar.benchmark]))
