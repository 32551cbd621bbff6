"""The part of a summary that is about logits: how sure the model was, and of what the least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pertoken.quantity import count_text, name_text, plural_text
from pertoken.summary_block import Block, step_text

_SIGNALS = {"top1_prob": "top-1", "margin": "margin", "entropy": "entropy", "logprob": "logprob"}


def mean_confidence_block(data: Mapping[str, Any]) -> Block:
    """Put the means over all tokens into words; an empty block where nothing was read."""
    title = "Confidence (means over all tokens, ± their interval of 95 % where sampled)"
    means = (data.get("confidence") or {}).get("means")
    if not means:
        return Block(title)
    rows = tuple(
        (
            name_text(kind),
            count_text(of_kind["tokens"]),
            *(_estimate(of_kind[name]) for name in _SIGNALS),
            _number(of_kind["perplexity"]),
        )
        for kind, of_kind in means.items()
    )
    lines = []
    if any("?" in cell for row in rows for cell in row[2:]):
        lines.append("± ?: too few steps were read, or a few outweigh the others.")
    unknown = sum(
        of_kind["tokens"] - of_kind["logprob"]["tokens"]
        for of_kind in means.values()
        if of_kind["logprob"]
    )
    if unknown:
        whose = f"{plural_text(unknown, 'token')} read"
        lines.append(f"The logprob of {whose} is unknown; its mean is of the others.")
    columns = ("kind", "read", *_SIGNALS.values(), "perplexity")
    return Block(title, tuple(lines), columns, rows, frozenset(columns[1:]))


def _estimate(signal: Mapping[str, Any] | None) -> str:
    """A mean, and below it how far off it may be."""
    if signal is None:
        return "-"
    mean, low, high = signal["mean"], signal["low"], signal["high"]
    if low is None:
        return f"{_number(mean)}\n± ?"
    half = max(mean - low, high - mean)
    return f"{_number(mean)}\n± {half:.2g}" if half > 0 else _number(mean)


def confidence_block(data: Mapping[str, Any]) -> Block:
    """Put the least confident tokens into words; an empty block where no logits were read."""
    title = "Least confident tokens (top-1: the probability of the most probable token)"
    confidence = data.get("confidence")
    if not confidence:
        return Block(title)
    rows = tuple(
        (
            f"{token['position']}" if token["position"] >= 0 else "?",
            name_text(token["request_id"] or token["request"]),
            f"{token['row']}",
            f"{step_text(token['step'])} {name_text(token['kind'])}",
            *(_number(token[name]) for name in _SIGNALS),
        )
        for token in confidence["least_confident_tokens"]
    )
    lines = (f"The logits of {plural_text(confidence['tokens'], 'token')} were read.",)
    signals = tuple(_SIGNALS.values())
    columns = ("token", "request", "row", "step", *signals)
    return Block(title, lines, columns, rows, frozenset({"token", "row", *signals}))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
