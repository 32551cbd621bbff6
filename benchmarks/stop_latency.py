"""How long `stop()` takes after a million spans, and `result()` after it.

The last request is recorded at full speed and not drained, so that `stop()` meets a collector with
more to do than a real model can leave it. What counts is the worst of the repeats.
"""

from __future__ import annotations

import gc
from time import perf_counter_ns
from typing import Any

import pertoken
from paired import median_interval
from script import Advance, run_script
from skeleton import Skeleton, record_spans, require_spans


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Times `stop()` and then `result()`, in several recordings one after the other."""
    repeats, spans = (2, 2_000) if smoke else (12, 1_000_000)
    stop_ns: list[int] = []
    result_ns: list[int] = []
    for number in range(repeats):
        model = Skeleton()
        recording = pertoken.profile(model, modules="all")
        recording.start()
        record_spans(recording, model, spans)
        gc.collect()
        start_ns = perf_counter_ns()
        recording.stop()
        free_ns = perf_counter_ns()
        profile = recording.result()
        ready_ns = perf_counter_ns()
        if any("_compiled_call_impl" in module.__dict__ for module in model.modules()):
            raise RuntimeError("the model is not free after stop()")
        require_spans(profile, spans)
        stop_ns.append(free_ns - start_ns)
        result_ns.append(ready_ns - free_ns)
        del recording, profile
        advance((number + 1) / repeats)
    return {
        "spans": spans,
        "stop_ns": {**median_interval(stop_ns), "worst": max(stop_ns)},
        "result_ns": {**median_interval(result_ns), "worst": max(result_ns)},
    }


if __name__ == "__main__":
    run_script("latency of stop()", measure)
