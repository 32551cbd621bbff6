"""What recording adds to a decode step of a real model.

The decode runs in two ways. Through `generate()`, as users run it: this is what the bars are held
against, and there a recording has most to do. And in a loop by hand around the forward alone,
where the same cost weighs more, since nothing else is part of the step. In each, a recording takes
turns with nothing, within one text (see `turns.py`), and texts of all variants and both ways are
in random order. What is to be found is a few tenths of a per cent; tools that add tens of per cent
are compared in `peers.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pertoken
from hooks import calls_a_step
from paired import CONTROL, WARM_UP_ROUNDS, Variant, quiet_process
from script import Advance, run_script
from tiny_llama import (
    WARM_UP_STEPS,
    decode_by_generate,
    decode_by_hand,
    prompt_ids,
    tiny_llama,
)
from turns import TURN_STEPS, Turns

SELECTIONS = ("root", "layers", "all")
WAYS: dict[str, Callable[..., list[int]]] = {
    "generate": decode_by_generate,
    "by_hand": decode_by_hand,
}


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Compares all selections in one interleaved run of both ways to decode."""
    rounds, pairs = (1, 2) if smoke else (80, 80)
    model, prompt = tiny_llama(), prompt_ids()
    recordings = {
        CONTROL: pertoken.profile(model, modules="all"),
        **{f"pertoken {each}": pertoken.profile(model, modules=each) for each in SELECTIONS},
    }
    turns = {
        (way, name): Turns(recording, records=name != CONTROL)
        for way in WAYS
        for name, recording in recordings.items()
    }
    order = random.Random(0)
    with quiet_process():
        for number in range(WARM_UP_ROUNDS + rounds):
            for way, name in order.sample(list(turns), len(turns)):
                decode = partial(WAYS[way], model, prompt)
                turns[way, name].run_text(decode, pairs, order, keep=number >= WARM_UP_ROUNDS)
            advance((number + 1) / (WARM_UP_ROUNDS + rounds))
    for name, recording in recordings.items():
        if name != CONTROL:
            require_complete(recording)
    return {
        "modules": sum(1 for _ in model.modules()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "texts": rounds,
        "pairs_a_text": pairs,
        "turn_steps": TURN_STEPS,
        "ways": {
            way: {
                "calls_a_step": _calls(decode, model, prompt),
                "variants": {name: turns[way, name].estimates() for name in recordings},
            }
            for way, decode in WAYS.items()
        },
    }


def _calls(way: Callable[..., list[int]], model: Any, prompt: Any) -> int:
    # The prefill is a step, too.
    return calls_a_step(model, lambda: way(model, prompt, 1), 1 + WARM_UP_STEPS + 1)


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
