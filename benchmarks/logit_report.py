"""The section of the performance page on logits."""

from __future__ import annotations

from typing import Any

from bars import factor_text, ns_text, percent_text
from page_parts import estimate_text, table


def section(logits: dict[str, Any]) -> str:
    """The section, from what `logit_pass.py` measured."""
    rows = [
        (
            f"{int(size):,}",
            kind,
            name,
            estimate_text(figures["ns"], ns_text),
            "-" if name == "pertoken" else estimate_text(figures["times_slower"], factor_text),
        )
        for size, kinds in logits["rows"].items()
        for kind, works in kinds.items()
        for name, figures in works.items()
    ]
    steps = [
        (
            f"{int(size):,}",
            name,
            ns_text(variant["step_ns"]["median"]),
            estimate_text(variant["ratio"], percent_text),
            ns_text(variant["added_ns"]["median"]),
        )
        for size, decode in logits["decode"].items()
        for name, variant in decode["variants"].items()
    ]
    one = next(iter(logits["decode"].values()))
    return (
        "## Logits\n\n"
        "What one row of logits says: the two largest, the entropy, and the sum that a "
        "log-probability is relative to. One\nthread, interleaved in random order, "
        f"{logits['rounds']} rounds. torch takes log_softmax in float32, exp, topk and a dot "
        "product.\n"
        f"`pertoken` uses {logits['instruction_sets'][-1]}, the best that this processor has.\n\n"
        + table(("vocabulary", "values", "read by", "a row", "its time, to that of pertoken"), rows)
        + "\n\nA decode step through `generate()` of a Llama of 4 layers x 256 with that "
        "vocabulary, batch 1, with `logits=True` at every step,\nwhich is the default, and at "
        f"fewer; {one['rounds']} rounds of {one['steps_a_block']} steps. Its root alone is "
        "recorded.\n\n"
        + table(("vocabulary", "variant", "step", "added to the step", "added"), steps)
    )
