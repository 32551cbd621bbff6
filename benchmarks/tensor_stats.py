"""Histogram and moments of a tensor, beside what torch and numpy have for either.

All of a kind of tensor run interleaved in one process, in random order, one thread. A figure of a
round is the quickest of a few calls in a row, since other tenants of the machine only ever add;
rates are medians over the rounds, and ratios are of one round each.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch

from paired import median_interval
from pertoken import Histogram, _native
from pertoken.tensor_memory import memory_of
from script import Advance, part, run_script

BINS = 200
SCALE = 3
CALLS = 3
DECODE_SHAPE = (1, 4096)
DECODE_CALLS = 200

Work = Callable[[], object]


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Rates in values a second, and their ratios, for each kind of tensor."""
    values = 1 << 18 if smoke else 1 << 24
    rounds = 3 if smoke else 15
    kinds = _tensors(values)
    result: dict[str, Any] = {
        "values": values,
        "rounds": rounds,
        "bins": BINS,
        "instruction_sets": list(_native.instruction_sets()),
        "kinds": {},
    }
    for number, (kind, tensor) in enumerate(kinds.items()):
        works = _counters(tensor)
        if kind in ("float32", "bfloat16"):
            works |= _peers(tensor)
            works |= {"pertoken, constant": _counter(torch.full_like(tensor, 1.2345))}
        timed = interleaved(works, rounds, part(advance, number, len(kinds) + 1))
        result["kinds"][kind] = _rates(timed, tensor.numel())
    decode = {
        name: _repeated(_counters(torch.randn(DECODE_SHAPE).to(dtype))["pertoken"])
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    timed = interleaved(decode, rounds, part(advance, len(kinds), len(kinds) + 1))
    result["decode_sized"] = {
        "values": DECODE_SHAPE[0] * DECODE_SHAPE[1],
        "ns": {
            name: median_interval(n / DECODE_CALLS for n in blocks)
            for name, blocks in timed.items()
        },
    }
    return result


def _tensors(values: int) -> dict[str, torch.Tensor]:
    normal = torch.randn(values, generator=torch.Generator().manual_seed(0))
    return {
        "float32": normal,
        "bfloat16": normal.to(torch.bfloat16),
        "float16": normal.to(torch.float16),
        "float8_e4m3fn": normal.to(torch.float8_e4m3fn),
        "float8_e5m2": normal.to(torch.float8_e5m2),
        "float32, half of it zeros": normal.relu(),
        "float32, every second column": normal.view(-1, 2048)[:, ::2],
        "float64": normal[: values // 4].to(torch.float64),
    }


def _counter(tensor: torch.Tensor) -> Work:
    return lambda: Histogram.from_values(tensor, SCALE)


def _counters(tensor: torch.Tensor) -> dict[str, Work]:
    """As users call it, and with each lesser set of instructions."""
    memory = memory_of(tensor)

    def counter_with(instructions: str) -> Work:
        return lambda: _native.ExpHistogram.of_tensor(
            memory.address, memory.format, memory.shape, memory.strides_bytes, SCALE, instructions
        )

    lesser = _native.instruction_sets()[:-1]
    return {"pertoken": _counter(tensor)} | {
        f"pertoken, {name}": counter_with(name) for name in lesser
    }


def _peers(tensor: torch.Tensor) -> dict[str, Work]:
    peers: dict[str, Work] = {
        "torch.histc": lambda: torch.histc(tensor, BINS),
        "torch aminmax + mean + std": lambda: (
            torch.aminmax(tensor),
            torch.mean(tensor),
            torch.std(tensor),
        ),
    }
    if tensor.dtype == torch.float32:
        array = tensor.numpy()
        peers |= {
            "torch.histogram": lambda: torch.histogram(tensor, BINS),
            "numpy.histogram": lambda: np.histogram(array, BINS),
        }
    return peers


def _repeated(work: Work) -> Work:
    def run() -> None:
        for _ in range(DECODE_CALLS):
            work()

    return run


def interleaved(works: dict[str, Work], rounds: int, advance: Advance) -> dict[str, list[float]]:
    """For each, the nanoseconds of every round: the quickest of a few calls."""
    timed: dict[str, list[float]] = {name: [] for name in works}
    order = random.Random(0)
    for number in range(rounds):
        for name in order.sample(list(works), len(works)):
            timed[name].append(min(_elapsed_ns(works[name]) for _ in range(CALLS)))
        advance((number + 1) / rounds)
    return timed


def _elapsed_ns(work: Work) -> int:
    start = perf_counter_ns()
    work()
    return perf_counter_ns() - start


def _rates(timed: dict[str, list[float]], values: int) -> dict[str, Any]:
    ours = timed["pertoken"]
    return {
        name: {
            "values_a_second": median_interval(values * 1e9 / n for n in blocks),
            "times_slower": median_interval(
                theirs / mine for theirs, mine in zip(blocks, ours, strict=True)
            ),
        }
        for name, blocks in timed.items()
    }


if __name__ == "__main__":
    run_script("tensor statistics", measure)
