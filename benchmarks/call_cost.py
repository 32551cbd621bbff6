"""What a wrapped call costs beside a bare one, without a model's own time to hide in.

Three costs: a child module's call inside a step; a step of the root inside `generate()`; and the
same with the note of what the step commits. All modules compute nothing, so the figures are those
of hot caches; the decode of a real model says what the wrapper costs beside real work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import pertoken
from call_loops import ChildLoop, RootLoop
from decode_overhead import recorded, require_complete
from paired import Variant, compare
from script import Advance, part, run_script

BLOCK_BATCHES = 5


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Compares each call with and without its wrapper."""
    rounds, calls = (3, 10) if smoke else (300, 1000)
    ids = torch.ones((1, 8), dtype=torch.int64)
    child, root = ChildLoop(calls), RootLoop(calls)
    loops: dict[str, tuple[torch.nn.Module, Callable[[], float]]] = {
        "child": (child, partial(child, ids)),
        # Looked up at each call: a recording wraps generate() in the class.
        "root": (root, lambda: root.generate(ids, commits=False)),
        "root_with_commit": (root, lambda: root.generate(ids, commits=True)),
    }
    result: dict[str, Any] = {"rounds": rounds, "calls_a_block": BLOCK_BATCHES * calls}
    for number, (name, (model, batch)) in enumerate(loops.items()):
        recording = pertoken.profile(model, modules="all")
        result[name] = compare(
            [Variant("pertoken", partial(recorded, recording))],
            partial(_batches, batch),
            rounds=rounds,
            advance=part(advance, number, len(loops)),
        )
        require_complete(recording)
        if model is root and "decode" not in recording.totals().steps:
            raise RuntimeError("the steps were not seen as those of generate()")
    return result


def _batches(batch: Callable[[], float]) -> list[float]:
    batch()
    return [batch() for _ in range(BLOCK_BATCHES)]


if __name__ == "__main__":
    run_script("cost of a call", measure)
