"""`totals()` of a model that runs: what it takes, and what a step has to wait for it.

The tiny Llama decodes by hand, every module recorded, while another thread takes totals every
10 ms, or wakes as often and does nothing; blocks of steps without such a thread are interleaved.
Besides, what `totals()` and `result()` take alone, with few spans in the store and with many.
All takes about a minute.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter_ns
from typing import Any

import pertoken
from paired import Variant, compare, median_interval
from script import Advance, part, run_script
from skeleton import recording_of_skeleton
from tiny_llama import decode_by_hand, prompt_ids, tiny_llama

EVERY_S = 0.01


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Compares steps with and without a thread that looks, then times the calls alone."""
    rounds, steps = (2, 8) if smoke else (40, 200)
    spans = (2_000, 4_000) if smoke else (10_000, 1_000_000)
    model, prompt = tiny_llama(), prompt_ids()
    with pertoken.profile(model, modules="all") as recording:
        variants = compare(
            [
                Variant("a thread that wakes", partial(looking, lambda: None)),
                Variant("totals()", partial(looking, recording.totals)),
                Variant("status()", partial(looking, recording.status)),
            ],
            lambda: decode_by_hand(model, prompt, steps),
            rounds=rounds,
            advance=part(advance, 0, 2),
        )
    result: dict[str, Any] = {
        "every_ns": round(EVERY_S * 1e9),
        "rounds": rounds,
        "steps_a_block": steps,
        "sites": len(recording.totals().sites),
        "variants": variants,
        "alone": [],
    }
    for number, count in enumerate(spans):
        result["alone"].append(alone(count, 3 if smoke else 100))
        part(advance, 1, 2)((number + 1) / len(spans))
    return result


@contextmanager
def looking(look: Callable[[], object]) -> Iterator[None]:
    """A thread that looks every 10 ms."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(EVERY_S):
            look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def alone(spans: int, times: int) -> dict[str, Any]:
    """What each call takes when nothing else runs and the store holds so many spans."""
    recording = recording_of_skeleton(spans)
    return {
        "spans": spans,
        "totals_ns": calls_ns(recording.totals, times),
        "result_ns": calls_ns(recording.result, max(3, times // 10)),
    }


def calls_ns(call: Callable[[], object], times: int) -> dict[str, float]:
    """The nanoseconds of a call, and the worst of so many."""
    taken = []
    for _ in range(times):
        begin = perf_counter_ns()
        call()
        taken.append(perf_counter_ns() - begin)
    return {**median_interval(taken), "worst": max(taken)}


if __name__ == "__main__":
    run_script("totals of a model that runs", measure)
