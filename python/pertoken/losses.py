"""What a recording could not see or did not keep, in numbers and in sentences."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from pertoken.recording import Recording


def describe_losses(recording: Recording, raw: dict[str, Any]) -> dict[str, Any]:
    """The `losses` of a profile.

    Args:
        recording: the recording.
        raw: its native snapshot.

    Returns:
        Counts, names of modules that the compiler inlined, and a sentence for each loss.
    """
    native = raw["losses"]
    faults = dict(recording.faults)
    if native["recording_faults"]:
        faults["inputs of forward not understood"] = native["recording_faults"]
    if native["collector_faults"]:
        faults["records that could not be stored"] = native["collector_faults"]
    inlined, compiled_steps = _inlined_modules(recording, raw)
    overwritten = sorted(set(recording.instrumentation.overwritten))
    reasons = []
    if not recording.enabled:
        reasons.append("PERTOKEN=0 in the environment: nothing was recorded.")
    if native["records_dropped"]:
        reasons.append(
            f"{native['records_dropped']} records were dropped: a thread's ring was full, "
            "or it could not be given one."
        )
    if native["steps_evicted"] or native["spans_evicted"]:
        reasons.append(
            f"The oldest {native['steps_evicted']} steps were let go to stay within "
            "memory_limit_bytes; totals() still counts them."
        )
    if recording.log.evicted:
        reasons.append(f"The oldest {recording.log.evicted} requests were let go likewise.")
    if inlined:
        reasons.append(
            f"{len(inlined)} modules have no spans in steps that ran compiled "
            f"({compiled_steps} of {len(raw['steps']['step'])}): the compiler inlined them."
        )
    if overwritten:
        reasons.append(
            "Something else replaced the wrapper of these modules, so they were not recorded "
            f"throughout: {', '.join(overwritten[:8])}."
        )
    if recording.unknown_commits:
        reasons.append(
            "This transformers does not tell how many tokens a step commits: tokens are unknown."
        )
    bound = raw["clock"]["error_bound_ns"]
    return {
        "records_dropped": native["records_dropped"],
        "spans_evicted": native["spans_evicted"],
        "steps_evicted": native["steps_evicted"],
        "requests_evicted": recording.log.evicted,
        "clock_error_ns": -1 if bound is None else bound,
        "faults": faults,
        "inlined_modules": inlined,
        "reasons": reasons,
    }


def _inlined_modules(recording: Recording, raw: dict[str, Any]) -> tuple[list[str], int]:
    """Wrapped modules that compiled code ran without calling, and how many steps were compiled.

    A step in which no wrapped module was called at all, while the compiler is loaded, ran
    compiled; so did the children of a module that `module.compile()` has replaced.
    """
    modules = recording.instrumentation.modules
    steps = raw["steps"]
    if not modules or not len(steps["step"]) or "torch._dynamo" not in sys.modules:
        return [], 0
    bare = int(np.count_nonzero(steps["bare"]))
    if bare:
        return list(modules), bare
    seen = {raw["sites"][site][1] for site in np.unique(raw["spans"]["site"]).tolist()}
    compiled = [
        name
        for name, module in modules.items()
        if recording.instrumentation.was_compiled(name, module)
    ]
    inlined = [
        name
        for name in modules
        if name not in seen and any(name.startswith(parent + ".") for parent in compiled)
    ]
    return inlined, len(steps["step"]) if inlined else 0
