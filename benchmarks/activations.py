"""What observing activations adds to a decode step, beside hooks that ask torch for the same.

The hooks stand on the modules that `activations="layers"` selects, and know no more than it does:
a histogram, the moments, and how many values are not finite. torch's histogram has equal bins, over
a range that must be told or found first; the hooks are given a fixed one, which is quicker.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

import pertoken
from decode_overhead import recording_variant
from paired import Variant, compare
from script import Advance, run_script
from tiny_llama import decode_by_generate, prompt_ids, tiny_llama

EVERY = 16
BINS = 200
SPANS = "pertoken layers"
RATES = {
    "activations, every step": 1,
    f"activations, 1 step in {EVERY}": EVERY,
}
HOOKS = {
    "hooks with torch, every step": 1,
    f"hooks with torch, 1 step in {EVERY}": EVERY,
}


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Compares both rates of both ways with nothing, and with spans alone."""
    rounds, steps = (3, 4) if smoke else (200, 64)
    model, prompt = tiny_llama(), prompt_ids()
    recordings = {SPANS: pertoken.profile(model)} | {
        name: pertoken.profile(model, activations="layers", activation_every=every)
        for name, every in RATES.items()
    }
    sites = observed_sites(model, partial(decode_by_generate, model, prompt, 1))
    variants = [recording_variant(name, recording) for name, recording in recordings.items()] + [
        Variant(name, partial(torch_hooks, model, sites, every)) for name, every in HOOKS.items()
    ]
    block = partial(decode_by_generate, model, prompt, steps)
    block()
    result = {
        "sites": len(sites),
        "rounds": rounds,
        "steps_a_block": steps,
        "values_a_step": sum(sites.values()),
        "variants": compare(variants, block, rounds=rounds, advance=advance),
    }
    observed = recordings["activations, every step"].result()
    per_step = observed.steps["observe_ns"][observed.steps["kind"] == "decode"]
    result["observe_ns_a_site"] = float(sorted(per_step)[len(per_step) // 2]) / len(sites)
    losses = observed.losses
    if losses["observations_skipped"] or losses["records_dropped"] or losses["faults"]:
        raise RuntimeError(f"the recording is not complete: {losses}")
    return result


def observed_sites(model: torch.nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """What `activations="layers"` observes in the last step of `run`: values by site."""
    with pertoken.profile(model, activations="layers", activation_every=1) as recording:
        run()
    table = recording.result().activations
    last = table.where(table["step"] == table["step"].max())
    return dict(zip(last["site"].tolist(), last["count"].tolist(), strict=True))


@contextmanager
def torch_hooks(model: torch.nn.Module, sites: Iterable[str], every: int) -> Iterator[None]:
    """Hooks that count what the sites put out, in one step of every so many, and hold it."""
    held: list[tuple[Any, ...]] = []
    chance = random.Random(0)
    is_observed = [False]

    def begin(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        is_observed[0] = every == 1 or chance.random() < 1 / every

    def after(module: torch.nn.Module, args: Any, output: Any) -> None:
        if not is_observed[0]:
            return
        values = output if isinstance(output, torch.Tensor) else output[0]
        # On a GPU it takes no 16-bit format.
        wide = values if values.dtype == torch.float32 else values.float()
        held.append(
            (
                torch.histc(wide, BINS, -8.0, 8.0),
                *torch.aminmax(values),
                values.mean(),
                values.std(),
                values.isfinite().logical_not().sum(),
            )
        )

    handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    handles += [model.get_submodule(site).register_forward_hook(after) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    run_script("activations", measure)
