"""How many bytes a span takes in the native store, all in, after a million of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pertoken
from script import Advance, run_script
from skeleton import Skeleton, record_spans, recording_of_skeleton, require_spans

PAGE_FIELD = 1  # of /proc/self/statm: resident pages


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Divides what the store holds, steps and unfilled chunks included, by its spans."""
    spans = 2_000 if smoke else 1_000_000
    recording_of_skeleton(2_000)  # what is allocated once and for all
    advance(0.1)
    before_bytes = resident_bytes()
    model = Skeleton()
    with pertoken.profile(model, modules="all") as recording:
        record_spans(recording, model, spans)
        recording.recorder.drain()
        store_bytes = int(recording.recorder.store_bytes)
        grown_bytes = resident_bytes() - before_bytes
    advance(0.6)
    profile = recording.result()
    require_spans(profile, spans)
    return {
        "spans": len(profile.spans),
        "steps": len(profile.steps),
        "store_bytes": store_bytes,
        "bytes_a_span": store_bytes / len(profile.spans),
        # With the ring of one thread and the allocator's own overhead.
        "process_growth_bytes": grown_bytes,
    }


def resident_bytes() -> int:
    """What the process holds in memory now."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[PAGE_FIELD])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    run_script("memory of the store", measure)
