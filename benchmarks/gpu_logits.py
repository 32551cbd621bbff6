"""Logits on a GPU: the kernels that read them, beside torch's, and what they add to a decode.

The kernels read rows of logits that lie there, beside a copy of these, and torch's softmax, topk
and entropy, as `kernel_times.py` times it. They are launched by steps of a model that puts out
nothing else. Where the tokens that were chosen become known later, the rows are copied while they
are read; so a reading as quick as the copy moves as many bytes in its time, and one that copies
nothing would take half of it.

The decode is of the smaller of the models on a GPU, to whose step the reading adds most: by
`generate()`, and in a loop by hand that waits for each token. Variants run interleaved, as
`paired` says.

Without a GPU only the smoke run does anything: a toy model and small logits on the processor show
that the benchmark works. Its times are no figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter_ns
from typing import Any

import torch

import pertoken
from gpu_device import describe_gpu, wait_for_gpu
from gpu_llama import SHAPES, TOY, gpu_llama
from kernel_times import Times, interleaved, missing, ratio
from logit_decode import added_by_reading, lost_tokens
from logit_pass import DTYPES, TORCH, VOCABULARIES, torch_signals
from paired import median_interval
from script import Advance, part, run_script
from tiny_llama import WARM_UP_STEPS, decode_by_generate

READ = "pertoken"
READ_AND_COPIED = "pertoken, copied"
COPY = "copy"
# Bytes that it moves, to those of the logits.
MOVED = {READ: 1, READ_AND_COPIED: 2}
TELL_KERNEL = "pertoken_tell_logits"
ROWS = (256, 32, 1)  # the most first, so that the memory of copies is made once
SMOKE_VOCABULARIES = (1_000,)
PROMPT_TOKENS = 16


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Times of the kernels for each form of logits, and of decode steps with and without them."""
    reason = missing()
    if reason and not smoke:
        return {"measured": False, "reason": reason}
    device = "cpu" if reason else "cuda"
    rounds, steps = (3, 4) if smoke else (20, 32)
    shape = TOY if smoke else SHAPES[0]
    forms = [
        (rows, vocabulary, kind)
        for rows in ROWS
        for vocabulary in sorted(SMOKE_VOCABULARIES if smoke else VOCABULARIES, reverse=True)
        for kind in DTYPES
    ]
    decodes = [(way, batch) for way in WAYS for batch in ((1,) if smoke else (1, 32))]
    result: dict[str, Any] = {
        "measured": not reason and not smoke,
        "gpu": describe_gpu(),
        "rounds": rounds,
        "steps_a_block": steps,
        "shape": shape.name,
        "vocabulary": shape.vocabulary,
        "kernels": [],
        "decode": [],
    }
    parts = len(forms) + len(decodes)
    with readers(device) as both:
        for number, (rows, vocabulary, kind) in enumerate(forms):
            logits = torch.randn(rows, 1, vocabulary, device=device).mul(3).to(DTYPES[kind])
            times = kernel_times(logits, both, rounds)
            case = {"vocabulary": vocabulary, "dtype": kind, "rows": rows}
            result["kernels"].append({**case, "works": _figures(times, logits.nbytes)})
            part(advance, number, parts)(1.0)
    result["lost"] = {
        name: lost_tokens(of.recording.result(), "entropy") for name, of in both.items()
    }
    model = gpu_llama(shape, device)
    for number, (way, batch) in enumerate(decodes, len(forms)):
        prompt = torch.randint(1, shape.vocabulary, (batch, PROMPT_TOKENS), device=device)
        estimates, profile = added_by_reading(
            model,
            partial(WAYS[way], model, prompt, steps),
            rounds=rounds,
            advance=part(advance, number, parts),
        )
        case = {"way": way, "batch": batch, "lost": lost_tokens(profile, "entropy")}
        result["decode"].append({**case, "variants": estimates})
    return result


class Reader:
    """Has the same logits (rows, 1, vocabulary) read by each of its steps, as a recording does.

    They are copied where the model's cache says its length: then the next step's ids are known to
    be the tokens that were chosen.
    """

    def __init__(self, device: str, *, copied: bool) -> None:
        self.model = _Head(device)
        self.recording = pertoken.profile(self.model, modules="root", logits=True)
        self._cache = _Cache(copied)
        self._ids = torch.zeros(0, 1, dtype=torch.long)

    def show(self, logits: torch.Tensor, ids: torch.Tensor) -> None:
        """Takes the logits of the next steps, and the ids (rows, 1) that all of them are fed."""
        self.model.logits, self._ids = logits, ids

    def step(self) -> None:
        """Reads them once, in a request that the caller has opened."""
        rows = len(self._ids)
        with pertoken.step(kind="decode", rows=rows, tokens_committed=rows):
            self.model(self._ids, past_key_values=self._cache)
        self._cache.tokens += 1

    def settle(self) -> None:
        """Takes what has arrived, so that there is room for more."""
        self.recording.recorder.drain()


class _Head(torch.nn.Module):
    """Puts out what it holds, whatever it is fed."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, device=device))
        self.logits = torch.zeros(1, 1, 1, device=device)

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None) -> torch.Tensor:
        return self.logits


class _Cache:
    """Of so many tokens, which only some say."""

    def __init__(self, says_length: bool) -> None:
        self.tokens, self._says_length = 0, says_length

    def get_seq_length(self) -> int | None:
        return self.tokens if self._says_length else None


@contextmanager
def readers(device: str) -> Iterator[dict[str, Reader]]:
    """One that copies nothing and one that copies, both recording, in a request."""
    found = {READ: Reader(device, copied=False), READ_AND_COPIED: Reader(device, copied=True)}
    with ExitStack() as stack:
        for reader in found.values():
            stack.enter_context(reader.recording)
        stack.enter_context(pertoken.request())
        yield found


def kernel_times(logits: torch.Tensor, readers: dict[str, Reader], rounds: int) -> dict[str, Times]:
    """The times of both readers, of a copy, and of torch, on these logits (rows, 1, vocabulary)."""
    ids = torch.zeros(len(logits), 1, dtype=torch.long, device=logits.device)
    works: dict[str, Callable[[], object]] = {
        COPY: logits.clone,
        TORCH: lambda: torch_signals(logits),
    }
    for name, reader in readers.items():
        reader.show(logits, ids)
        works[name] = reader.step

    def settle() -> None:
        for reader in readers.values():
            reader.settle()

    return interleaved(works, rounds, settle=settle)


def _figures(times: dict[str, Times], logits_bytes: int) -> dict[str, Any]:
    figures: dict[str, Any] = {name: of.estimates(times[READ]) for name, of in times.items()}
    for name, moved in MOVED.items():
        tells_ns = [_tell_ns(kernels) for kernels in times[name].kernels_ns]
        reads_ns = [gpu - tell for gpu, tell in zip(times[name].gpu_ns, tells_ns, strict=True)]
        figures[name] |= {
            "read_ns": median_interval(reads_ns),
            "tell_ns": median_interval(tells_ns),
            "read_bytes_per_second": median_interval(logits_bytes * 1e9 / ns for ns in reads_ns),
            "share_of_copy_bandwidth": ratio(
                [ns * moved / 2 for ns in times[COPY].gpu_ns], reads_ns
            ),
        }
    return figures


def _tell_ns(kernels_ns: dict[str, float]) -> float:
    return sum(ns for name, ns in kernels_ns.items() if name.startswith(TELL_KERNEL))


def _by_generate(model: Any, prompt: torch.Tensor, steps: int) -> list[int]:
    durations_ns = decode_by_generate(model, prompt, steps)
    wait_for_gpu()
    return durations_ns


@torch.inference_mode()
def _by_hand(model: Any, prompt: torch.Tensor, steps: int) -> list[int]:
    """Decodes greedily, in steps that are declared; the nanoseconds of each after the warm-up.

    A step is one forward and the choice of its token, which is waited for.
    """
    rows, kind = len(prompt), "prefill"
    fed, cache = prompt, None
    durations_ns = []
    with pertoken.request():
        for _ in range(1 + WARM_UP_STEPS + steps):
            start_ns = perf_counter_ns()
            with pertoken.step(kind=kind, rows=rows, tokens_committed=rows):
                output = model(input_ids=fed, past_key_values=cache, use_cache=True)
            cache, kind = output.past_key_values, "decode"
            fed = output.logits[:, -1:].argmax(-1)
            wait_for_gpu()
            durations_ns.append(perf_counter_ns() - start_ns)
    return durations_ns[1 + WARM_UP_STEPS :]


WAYS: dict[str, Callable[..., list[int]]] = {"generate": _by_generate, "by_hand": _by_hand}


if __name__ == "__main__":
    run_script("logits on a GPU", measure)
