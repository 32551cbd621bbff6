"""The bars that the results are held against, and how each figure is read from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]
RECORDED = "pertoken all"
CONTROL = "nothing again"
Format = Callable[[float], str]


@dataclass(frozen=True)
class Bar:
    """A limit on one figure: at most, or at least where `at_least` says so."""

    what: str
    benchmark: str  # the section of the results that the figure is in
    read: Callable[[Any], dict[str, float] | None]  # section -> median, low, high; None: not here
    limit: float
    text: Format
    at_least: bool = False
    # What the control measured, as `read` gives it, and what it should have: its noise.
    read_control: Callable[[Any], float] | None = None
    neutral: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured."""

    bar: Bar
    measured: dict[str, float]
    control: float | None

    @property
    def outcome(self) -> str:
        """``pass`` or ``FAIL`` by the median, ``noise`` where the control misses the limit, too."""
        bar = self.bar
        if self.control is not None:
            allowed = abs(bar.limit - bar.neutral)
            if abs(self.control - bar.neutral) > allowed:
                return "noise"
        median = self.measured["median"]
        return "pass" if (median >= bar.limit if bar.at_least else median <= bar.limit) else "FAIL"


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


def share_text(value: float) -> str:
    """Writes a share of a time."""
    return f"{100 * value:.2g} %"


def bytes_text(value: float) -> str:
    """Writes a number of bytes."""
    return f"{value:.1f} bytes"


def rate_text(value: float) -> str:
    """Writes a rate of events."""
    return f"{value / 1e6:.2f} M/s"


def billions_text(value: float) -> str:
    """Writes a rate of values."""
    return f"{value / 1e9:.2f} G/s"


def _exact(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value}


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


def _tensor_rate(kind: str, instructions: str) -> Callable[[Any], dict[str, float] | None]:
    """Values a second by one set of instructions; None where the processor has not got it."""

    def read(tensors: Any) -> dict[str, float] | None:
        sets = tensors["instruction_sets"]
        if instructions not in sets:
            return None
        name = "pertoken" if instructions == sets[-1] else f"pertoken, {instructions}"
        rate: dict[str, float] = tensors["kinds"][kind][name]["values_a_second"]
        return rate

    return read


def _tensor_ratio(kind: str, other: str) -> Callable[[Any], dict[str, float]]:
    """How many times as long something else takes for the same tensor."""

    def read(tensors: Any) -> dict[str, float]:
        ratio: dict[str, float] = tensors["kinds"][kind][other]["times_slower"]
        return ratio

    return read


TENSOR_BARS = (
    *(
        Bar(
            f"histogram and moments of {kind} by {instructions}, values a second",
            "tensor_stats",
            _tensor_rate(kind, instructions.lower().replace("-", "")),
            limit,
            billions_text,
            at_least=True,
        )
        for kind in ("float32", "bfloat16")
        for instructions, limit in (("AVX-512", 1.2e9), ("AVX2", 0.8e9))
    ),
    Bar(
        "the same of float32, against torch.histc",
        "tensor_stats",
        _tensor_ratio("float32", "torch.histc"),
        4,
        factor_text,
        at_least=True,
    ),
    Bar(
        "the same of bfloat16, against torch.histc",
        "tensor_stats",
        _tensor_ratio("bfloat16", "torch.histc"),
        10,
        factor_text,
        at_least=True,
    ),
    *(
        Bar(
            f"the time of a constant tensor of {kind}, to that of a random one",
            "tensor_stats",
            _tensor_ratio(kind, "pertoken, constant"),
            2,
            factor_text,
        )
        for kind in ("float32", "bfloat16")
    ),
)


def _accounted(budget: float) -> Callable[[Any], dict[str, float]]:
    """The largest share of any selection under any load."""

    def read(budgets: Any) -> dict[str, float]:
        loads = [by_budget[f"{budget:g}"] for by_budget in budgets["accounted"].values()]
        return _exact(max(load["share"] for own in loads for load in own))

    return read


def _proved(budget: float) -> Callable[[Any], dict[str, float]]:
    """The upper end of what the experiment found, if it found one."""

    def read(budgets: Any) -> dict[str, float]:
        high = budgets["proved"][f"{budget:g}"]["high"]
        return _exact(math.inf if high is None else high)

    return read


def _plain_step(budgets: Any) -> dict[str, float]:
    """The largest cost of a step without detail."""
    cases = [own for by_budget in budgets["accounted"].values() for own in by_budget.values()]
    return _exact(max(load["plain_ns"] for own in cases for load in own))


BUDGET_BARS = (
    *(
        Bar(
            f"accounted under a budget of {share_text(budget)}, the worst 200 steps",
            "sampler_budget",
            _accounted(budget),
            budget,
            share_text,
        )
        for budget in (0.002, 0.01, 0.05)
    ),
    *(
        Bar(
            f"proved of a budget of {share_text(budget)}, the upper end of the interval",
            "sampler_budget",
            _proved(budget),
            budget,
            share_text,
        )
        for budget in (0.01, 0.05)
    ),
    Bar(
        "a step without detail, every module wrapped",
        "sampler_budget",
        _plain_step,
        1000,
        ns_text,
    ),
)


def _against_hooks(activations: Any) -> dict[str, float]:
    """How many times as much hooks with torch add to a step, as observing every step does."""
    variants = activations["variants"]
    ours = variants["activations, every step"]["added_ns"]
    hooks = variants["hooks with torch, every step"]["added_ns"]
    return {
        "median": hooks["median"] / ours["median"],
        "low": hooks["low"] / ours["high"],
        "high": hooks["high"] / ours["low"],
    }


ACTIVATION_BARS = (
    Bar(
        "what hooks with torch add to a step, to what observing every step adds",
        "activations",
        _against_hooks,
        1,
        factor_text,
        at_least=True,
    ),
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
    *TENSOR_BARS,
    *BUDGET_BARS,
    *ACTIVATION_BARS,
)


def verdicts(results: Results) -> Iterator[Verdict]:
    """Every bar whose benchmark is part of the results."""
    for bar in BARS:
        part = results["benchmarks"].get(bar.benchmark)
        if part is not None:
            measured = bar.read(part)
            control = None if bar.read_control is None else bar.read_control(part)
            if measured is not None:
                yield Verdict(bar, measured, control)
