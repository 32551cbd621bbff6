"""The part of a summary that is about logits: the tokens that the model was least sure of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pertoken.quantity import name_text, plural_text
from pertoken.summary_block import Block, step_text


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
            *(_number(token[name]) for name in ("top1_prob", "margin", "entropy", "logprob")),
        )
        for token in confidence["least_confident_tokens"]
    )
    lines = (f"The logits of {plural_text(confidence['tokens'], 'token')} were read.",)
    signals = ("top-1", "margin", "entropy", "logprob")
    columns = ("token", "request", "row", "step", *signals)
    return Block(title, lines, columns, rows, frozenset({"token", "row", *signals}))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
