"""The section of the performance page on what was measured on a GPU."""

from __future__ import annotations

from typing import Any

import gpu_activation_report
import gpu_logit_report
import gpu_stats_report
from bars import Results, verdicts
from figure_text import ns_text, percent_text
from gpu_bars import GPU_BARS
from page_parts import bars_table, case_text, estimate_text, table


def section(results: Results) -> str:
    """The section, from a run of `run.py --gpu`, or of a part of it."""
    parts: dict[str, Any] = results["benchmarks"]
    measured = {name: part for name, part in parts.items() if part["measured"]}
    if not measured:
        reason = next(iter(parts.values())).get("reason", "a smoke run")
        return f"## On a GPU\n\nNot measured: {reason}."
    gpu = next(iter(measured.values()))["gpu"]
    sections = [
        f"## On a GPU\n\n{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, CUDA {gpu['cuda']}.",
        bars_table(verdicts(results, GPU_BARS)),
    ]
    sections += [write(measured[name]) for name, write in _SECTIONS.items() if name in measured]
    return "\n\n".join(sections)


def _overhead(overhead: dict[str, Any]) -> str:
    text = (
        "### What recording adds\n\n"
        "Llamas in bfloat16 with random weights and a static cache; a step is one forward and the "
        f"wait for it.\n{overhead['rounds']} rounds of {overhead['steps_a_block']} steps, "
        "interleaved. In graphs each variant has a capture of its own."
    )
    columns = (
        "variant",
        "step",
        "added to the step",
        "to its median",
        "to its 99th percentile",
        "leaving the block",
    )
    for case in overhead["cases"]:
        rows = [
            (
                name,
                ns_text(variant["step_ns"]["median"]),
                estimate_text(variant["ratio"], percent_text),
                estimate_text(variant["middle_ratio"], percent_text),
                percent_text(variant["tail_ratio"]["median"]),
                ns_text(variant["leave_ns"]["median"]),
            )
            for name, variant in case["variants"].items()
        ]
        text += (
            f"\n\n#### {case_text(case)}\n\n"
            + table(columns, rows)
            + f"\n\n{case['boundaries_a_step']:.0f} boundaries a step with layers; `stop()` takes "
            f"{ns_text(case['stop_ns'])} at most; lost: {case['device_spans_lost'] or 'nothing'}."
        )
    return text


_SECTIONS = {
    "gpu_overhead": _overhead,
    "gpu_activations": gpu_activation_report.section,
    "gpu_stats": gpu_stats_report.section,
    "gpu_logits": gpu_logit_report.section,
}
