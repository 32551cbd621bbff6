"""The bars of histograms of tensors, and of observing activations and logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bar import CONTROL, Bar
from figure_text import billions_text, factor_text, percent_text


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


def _logit_ratio(vocabulary: int, kind: str) -> Callable[[Any], dict[str, float] | None]:
    """How many times as long torch takes; None where that vocabulary was not measured."""

    def read(logits: Any) -> dict[str, float] | None:
        kinds = logits["rows"].get(str(vocabulary))
        if kinds is None:
            return None
        (theirs,) = (figures for name, figures in kinds[kind].items() if name.startswith("torch"))
        ratio: dict[str, float] = theirs["times_slower"]
        return ratio

    return read


def _logit_step(vocabulary: int, variant: str) -> Callable[[Any], dict[str, float] | None]:
    """A variant's decode step, to that of nothing."""

    def read(logits: Any) -> dict[str, float] | None:
        decode = logits["decode"].get(str(vocabulary))
        return None if decode is None else dict(decode["variants"][variant]["ratio"])

    return read


def _logit_control(vocabulary: int) -> Callable[[Any], float]:
    return lambda logits: float(
        logits["decode"][str(vocabulary)]["variants"][CONTROL]["ratio"]["median"]
    )


LOGIT_BARS = (
    *(
        Bar(
            f"torch's softmax, topk and entropy of {vocabulary:,} logits of {kind}, to one pass",
            "logit_pass",
            _logit_ratio(vocabulary, kind),
            4,
            factor_text,
            at_least=True,
        )
        for vocabulary in (32_000, 128_256)
        for kind in ("float32", "bfloat16")
    ),
    *(
        Bar(
            f"reading the logits of every decode step, a vocabulary of {vocabulary:,}",
            "logit_pass",
            _logit_step(vocabulary, "logits, every step"),
            1.02,
            percent_text,
            read_control=_logit_control(vocabulary),
            neutral=1.0,
        )
        for vocabulary in (32_000, 128_256)
    ),
)
