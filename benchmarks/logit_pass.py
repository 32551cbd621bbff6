"""What logits say of a token, beside what torch has for it, and what reading them adds to a decode.

The pass over one row of logits runs interleaved with torch's own softmax, topk and entropy, as
`tensor_stats.py` does it. The decode is that of `activations.py`, of models whose vocabularies are
as large as those in use; its logits are read at every step, which is the default rate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from logit_decode import added_by_reading, lost_tokens
from paired import median_interval
from pertoken import _native
from pertoken.tensor_memory import memory_of
from script import Advance, part, run_script
from tensor_stats import interleaved
from tiny_llama import decode_by_generate, prompt_ids, tiny_llama

VOCABULARIES = (32_000, 128_256)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TORCH = "torch softmax + topk + entropy"
CALLS = 8  # in a row, so that reading the clock is no part of it

Work = Callable[[], object]


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """The time of a row of logits in every way, and of a decode step with and without reading."""
    vocabularies = VOCABULARIES[:1] if smoke else VOCABULARIES
    rounds = 3 if smoke else 200
    cases = [(size, kind) for size in vocabularies for kind in DTYPES]
    parts = len(cases) + len(vocabularies)
    result: dict[str, Any] = {
        "rounds": rounds,
        "instruction_sets": list(_native.instruction_sets()),
        "rows": {},
        "decode": {},
    }
    for number, (size, kind) in enumerate(cases):
        timed = interleaved(_works(size, DTYPES[kind]), rounds, part(advance, number, parts))
        result["rows"].setdefault(str(size), {})[kind] = _times(timed)
    for number, size in enumerate(vocabularies, len(cases)):
        result["decode"][str(size)] = _decode(size, smoke, part(advance, number, parts))
    return result


def torch_signals(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log-probabilities, the two largest probabilities and the entropy, of (..., vocabulary)."""
    log_probs = logits.log_softmax(-1, dtype=torch.float32)
    probs = log_probs.exp()
    return log_probs, probs.topk(2).values, -torch.linalg.vecdot(probs, log_probs)


def _works(size: int, dtype: torch.dtype) -> dict[str, Work]:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    memory = memory_of(logits)

    def reader(instructions: str) -> Work:
        return lambda: _native.logit_stats(
            memory.address, memory.format, memory.shape, memory.strides_bytes, instructions
        )

    best, *lesser = reversed(_native.instruction_sets())
    works = {"pertoken": reader(best)} | {f"pertoken, {name}": reader(name) for name in lesser}
    works[TORCH] = lambda: torch_signals(logits)
    return {name: _repeated(work) for name, work in works.items()}


def _repeated(work: Work) -> Work:
    def run() -> None:
        for _ in range(CALLS):
            work()

    return run


def _times(timed: dict[str, list[float]]) -> dict[str, Any]:
    ours = timed["pertoken"]
    return {
        name: {
            "ns": median_interval(ns / CALLS for ns in blocks),
            "times_slower": median_interval(
                theirs / mine for theirs, mine in zip(blocks, ours, strict=True)
            ),
        }
        for name, blocks in timed.items()
    }


def _decode(vocabulary: int, smoke: bool, advance: Advance) -> dict[str, Any]:
    rounds, steps = (3, 4) if smoke else (60, 24)
    model = tiny_llama(vocabulary)
    block = partial(decode_by_generate, model, prompt_ids(), steps)
    estimates, profile = added_by_reading(model, block, rounds=rounds, advance=advance)
    if missing := lost_tokens(profile, "logprob"):
        raise RuntimeError(f"the recording is not complete: {missing}")
    return {"rounds": rounds, "steps_a_block": steps, "variants": estimates}


if __name__ == "__main__":
    run_script("the pass over logits", measure)
