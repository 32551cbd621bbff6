"""What observing activations adds to a decode step on a GPU, beside hooks that ask torch for it.

The decode is that of `gpu_decode.py`, the hooks are those of `activations.py`: on the modules that
`activations="layers"` selects, knowing no more than it does. A step is one forward and the wait for
it, so what is added is all that the host and the GPU do for it; the host's part is `observe_ns`.

In a graph each variant has a capture of its own. Those of pertoken hold its launches and its
stamps, and are switched at each replay. Hooks are captured with the forward and cannot be switched:
one step in so many replays a graph with them, and the others one without. What is left of a capture
when nobody records is timed, too: of spans alone, and of the launches that observe besides.

Without a GPU only the smoke run does anything: a toy model on the processor shows that the
benchmark works. Its times are no figures.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np

import pertoken
from activations import EVERY, HOOKS, RATES, SPANS, observed_sites, torch_hooks
from decode_overhead import recording_variant
from gpu_decode import Decode, Run, as_step, measure_cases, running
from lost import lost
from paired import Variant, compare
from script import Advance, run_script

EVERY_STEP = next(iter(RATES))
SPANS_OFF = "spans, switched off"
OFF = "activations, switched off"


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Compares both rates of both ways with nothing, for each shape, batch and mode."""
    return measure_cases(_case, smoke=smoke, advance=advance, every=EVERY)


def _case(rounds: int, decode: Decode, mode: str, advance: Advance) -> dict[str, Any]:
    decode.forward()
    sites = observed_sites(decode.model, decode.forward)
    recordings = {SPANS: pertoken.profile(decode.model)} | {
        name: pertoken.profile(decode.model, activations="layers", activation_every=every)
        for name, every in RATES.items()
    }
    make = captured_variants if mode == "graph" else _eager_variants
    variants = make(decode, recordings, list(sites))
    estimates = compare(variants, decode.block, rounds=rounds, advance=advance)
    profiles = {name: recordings[name].result() for name in RATES}
    own_ns = profiles[EVERY_STEP].steps["observe_ns"]
    return {
        "sites": len(sites),
        "values_a_step": sum(sites.values()),
        "variants": estimates,
        "observe_ns_a_step": float(np.median(own_ns[own_ns > 0])),
        "lost": {name: lost(profile) for name, profile in profiles.items()},
    }


def _eager_variants(
    decode: Decode, recordings: dict[str, pertoken.Recording], sites: list[str]
) -> list[Variant]:
    variants = [recording_variant(name, recording) for name, recording in recordings.items()]
    return variants + [
        Variant(name, partial(torch_hooks, decode.model, sites, every))
        for name, every in HOOKS.items()
    ]


def captured_variants(
    decode: Decode, recordings: dict[str, pertoken.Recording], sites: list[str]
) -> list[Variant]:
    plain = decode.run = decode.captured()
    replays: dict[str, Run] = {}
    for name, recording in recordings.items():
        with recording:
            replays[name] = decode.captured()
    variants = [
        recording_variant(name, recording, within=partial(running, decode, as_step(replays[name])))
        for name, recording in recordings.items()
    ]
    for name, of in ((SPANS_OFF, SPANS), (OFF, EVERY_STEP)):
        variants.append(Variant(name, partial(running, decode, replays[of])))
    with torch_hooks(decode.model, sites, 1):
        hooked = decode.captured()
    for name, every in HOOKS.items():
        run = one_in(every, hooked, plain)
        variants.append(Variant(name, partial(running, decode, run)))
    return variants


def one_in(every: int, run: Run, other: Run) -> Run:
    """Runs `run` once in so many calls, at random, and else `other`."""
    chance = random.Random(0)
    return lambda: (run if every == 1 or chance.random() < 1 / every else other)()


if __name__ == "__main__":
    run_script("activations on a GPU", measure)
