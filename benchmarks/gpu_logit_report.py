"""The section of the performance page on logits on a GPU."""

from __future__ import annotations

from typing import Any

from figure_text import bandwidth_text, factor_text, ns_text, percent_text, share_text
from lost import lost_text
from page_parts import estimate_text, table

_WAYS = {"generate": "through `generate()`", "by_hand": "by hand"}


def section(logits: dict[str, Any]) -> str:
    """The section, from what `gpu_logits.py` measured."""
    rows = [
        (
            f"{case['vocabulary']:,}",
            case["dtype"],
            str(case["rows"]),
            name,
            estimate_text(figures["gpu_ns"], ns_text),
            "-" if name == "pertoken" else estimate_text(figures["times_slower"], factor_text),
            *_bandwidth(figures),
        )
        for case in sorted(logits["kernels"], key=_form)
        for name, figures in case["works"].items()
    ]
    steps = [
        (
            _WAYS[case["way"]],
            str(case["batch"]),
            name,
            ns_text(variant["step_ns"]["median"]),
            estimate_text(variant["ratio"], percent_text),
            estimate_text(variant["added_ns"], ns_text),
        )
        for case in logits["decode"]
        for name, variant in case["variants"].items()
    ]
    lost = [*logits["lost"].values(), *(case["lost"] for case in logits["decode"])]
    return (
        "### Logits\n\n"
        "What rows of logits say, read where they lie: the time of all kernels of a call, "
        f"interleaved in random order, {logits['rounds']} rounds.\n"
        "`pertoken, copied` also keeps the rows until it is known which tokens were chosen. The "
        "last two columns are of the kernel that\nreads, without the one that tells of the "
        "tokens; the share is of all bytes that either moves in a second, read and written.\n"
        "torch takes log_softmax in float32, exp, topk and a dot product.\n\n"
        + table(
            (
                "vocabulary",
                "values",
                "rows",
                "read by",
                "on the GPU",
                "its time, to that of pertoken",
                "read a second",
                "of the copy's bandwidth",
            ),
            rows,
        )
        + f"\n\nA decode step of the {logits['shape']} model, with a vocabulary of "
        f"{logits['vocabulary']:,}; by hand, each token is waited for. {logits['rounds']} rounds "
        f"of {logits['steps_a_block']} steps.\nIts root alone is recorded.\n\n"
        + table(("decoded", "batch", "variant", "step", "added to the step", "added"), steps)
        + f"\n\nNot read: {lost_text(lost)}."
    )


def _form(case: dict[str, Any]) -> tuple[int, str, int]:
    return case["vocabulary"], case["dtype"], case["rows"]


def _bandwidth(figures: dict[str, Any]) -> tuple[str, str]:
    if "share_of_copy_bandwidth" not in figures:
        return "-", "-"
    return (
        bandwidth_text(figures["read_bytes_per_second"]["median"]),
        estimate_text(figures["share_of_copy_bandwidth"], share_text),
    )
