"""What reading logits adds to a decode: at every step, which is the default rate, and at fewer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import pertoken
from decode_overhead import recording_variant
from lost import lost
from paired import compare
from script import Advance

STEPS_ALONE = "pertoken root"
EVERY_STEP = "logits, every step"
EVERY = 16
RATES = {EVERY_STEP: 1, f"logits, 1 step in {EVERY}": EVERY}


def added_by_reading(
    model: Any, block: Callable[[], Sequence[float]], *, rounds: int, advance: Advance
) -> tuple[dict[str, Any], pertoken.Profile]:
    """The estimates of each variant, and what the one that reads every step has recorded."""
    recordings = {STEPS_ALONE: pertoken.profile(model, modules="root")} | {
        name: pertoken.profile(model, modules="root", logits=True, logits_every=every)
        for name, every in RATES.items()
    }
    variants = [recording_variant(name, each) for name, each in recordings.items()]
    block()
    estimates = compare(variants, block, rounds=rounds, advance=advance)
    return estimates, recordings[EVERY_STEP].result()


def lost_tokens(profile: pertoken.Profile, column: str) -> dict[str, int]:
    """What of the logits was not read, by reason, and the tokens that lack this column."""
    lacking = int(np.isnan(profile.tokens[column]).sum())
    return lost(profile) | ({f"tokens without {column}": lacking} if lacking else {})
