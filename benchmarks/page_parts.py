"""Pieces of the performance page that several of its sections use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bar import Verdict

Estimate = dict[str, float]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def estimate_text(estimate: Estimate, text: Callable[[float], str]) -> str:
    """A median with its interval, where it has one."""
    if estimate["low"] == estimate["high"]:
        return text(estimate["median"])
    return f"{text(estimate['median'])} ({text(estimate['low'])} to {text(estimate['high'])})"


def case_text(case: dict[str, Any]) -> str:
    """Which model decodes on a GPU, and how."""
    mode = "in a CUDA graph" if case["mode"] == "graph" else "eager"
    return f"{case['shape']}, batch {case['batch']}, {mode}"


def bars_table(verdicts: Iterable[Verdict]) -> str:
    """What each bar is, and how it was met."""
    rows = []
    for verdict in verdicts:
        bar = verdict.bar
        limit = f"{'≥' if bar.at_least else '≤'} {bar.text(bar.limit).removeprefix('+')}"
        measured = estimate_text(verdict.measured, bar.text)
        outcome = verdict.outcome
        rows.append((bar.what, limit, measured, "pass" if outcome == "pass" else f"**{outcome}**"))
    return table(("what", "bar", "measured", ""), rows)
