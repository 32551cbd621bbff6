"""What recording adds to a decode step of a real model.

The decode runs in two ways. Through `generate()`, as users run it: this is what the bars are held
against, and there a recording has most to do. And in a loop by hand around the forward alone,
where the same cost weighs more, since nothing else is part of the step. Rounds of the two
alternate, so that a machine that is slower for a minute is so for both.

Rounds are many, and hold nothing slow: what is to be found is a few tenths of a per cent. Tools
that add tens of per cent are compared in `peers.py`, with fewer rounds. A block lasts nearly as
long as the drain thread sleeps, a quarter of a second: what the thread does once for that time is
done once at the end of the block, in the model's thread, and counts as if each step had waited for
its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pertoken
from hooks import calls_a_step
from paired import Comparison, Variant, run_rounds
from script import Advance, run_script
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
    """Compares all selections in one interleaved run of both ways to decode."""
    rounds, steps = (3, 4) if smoke else (150, 96)
    model, prompt = tiny_llama(), prompt_ids()
    result: dict[str, Any] = {
        "modules": sum(1 for _ in model.modules()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rounds": rounds,
        "steps_a_block": steps,
        "ways": {},
    }
    recordings: list[pertoken.Recording] = []
    comparisons: dict[str, Comparison] = {}
    for way, decode in WAYS.items():
        block = partial(decode, model, prompt, steps)
        block()
        # The prefill is a step, too.
        calls = calls_a_step(model, block, 1 + WARM_UP_STEPS + steps)
        result["ways"][way] = {"calls_a_step": calls}
        own = [pertoken.profile(model, modules=selection) for selection in SELECTIONS]
        variants = [
            recording_variant(f"pertoken {selection}", recording)
            for selection, recording in zip(SELECTIONS, own, strict=True)
        ]
        comparisons[way] = Comparison(variants, block)
        recordings += own
    run_rounds(list(comparisons.values()), rounds=rounds, advance=advance)
    for way, comparison in comparisons.items():
        result["ways"][way]["variants"] = comparison.estimates()
    for recording in recordings:
        require_complete(recording)
    return result


def recording_variant(
    name: str,
    recording: pertoken.Recording,
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Variant:
    """A recording, with all that the drain thread does for it; `within` is entered before it."""

    @contextmanager
    def context() -> Iterator[None]:
        with within(), recorded(recording):
            yield

    return Variant(name, context, recording.recorder.drain)


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
