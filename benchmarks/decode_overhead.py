"""What recording adds to a decode step of a real model, beside hooks and torch.profiler.

The decode runs in two ways. Through `generate()`, as users run it: this is what the bars are held
against, and there a recording has most to do. And in a loop by hand around the forward alone,
where the same cost weighs more, since nothing else is part of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pertoken
from hooks import calls_a_step, no_op_hooks, timing_hooks, torch_profiler
from paired import Variant, compare
from script import Advance, part, run_script
from tiny_llama import (
    WARM_UP_STEPS,
    decode_by_generate,
    decode_by_hand,
    prompt_ids,
    tiny_llama,
)

SELECTIONS = ("root", "layers", "all")
WAYS: dict[str, Callable[..., list[int]]] = {
    "generate": decode_by_generate,
    "by_hand": decode_by_hand,
}


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Compares all variants in one interleaved run for each way to decode."""
    rounds, steps = (3, 4) if smoke else (100, 48)
    model, prompt = tiny_llama(), prompt_ids()
    result: dict[str, Any] = {
        "modules": sum(1 for _ in model.modules()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rounds": rounds,
        "steps_a_block": steps,
        "ways": {},
    }
    for number, (way, decode) in enumerate(WAYS.items()):
        recordings = {
            selection: pertoken.profile(model, modules=selection) for selection in SELECTIONS
        }
        variants = [
            *(
                Variant(f"pertoken {selection}", partial(recorded, recording))
                for selection, recording in recordings.items()
            ),
            Variant("Python hooks, no-op", partial(no_op_hooks, model)),
            Variant("Python hooks, timing", partial(timing_hooks, model)),
            Variant("torch.profiler", torch_profiler),
        ]
        block = partial(decode, model, prompt, steps)
        block()
        result["ways"][way] = {
            # The prefill is a step, too.
            "calls_a_step": calls_a_step(model, block, 1 + WARM_UP_STEPS + steps),
            "variants": compare(
                variants,
                block,
                rounds=rounds,
                advance=part(advance, number, len(WAYS)),
            ),
        }
        for recording in recordings.values():
            require_complete(recording)
    return result


@contextmanager
def recorded(recording: pertoken.Recording) -> Iterator[None]:
    """Records meanwhile, and lets no draining reach into the block of another variant."""
    with recording:
        yield
    recording.recorder.drain()


def require_complete(recording: pertoken.Recording) -> None:
    """Raises when the recording lost something: what is not recorded costs nothing."""
    profile = recording.result()
    losses = profile.losses
    if losses["records_dropped"] or losses["faults"] or not len(profile.spans):
        raise RuntimeError(f"the recording of {recording.selection!r} is not complete: {losses}")


if __name__ == "__main__":
    run_script("decode overhead", measure)
