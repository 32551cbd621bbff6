"""The method of every comparison here: interleaved blocks in random order, compared round by round.

A round runs one block of every variant, so that what drifts (temperature, other tenants of the
machine) meets all of them alike. Two blocks of it do nothing: "nothing" and "nothing again". Each
other block is compared with the mean of both, since what one block of nothing is off by is off in
every comparison of its round; and the median over the rounds is quoted with its 95 % interval.
"nothing again" is compared with "nothing": its distance from 1 is the noise of the run.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

from script import Advance

BASELINE = "nothing"
CONTROL = "nothing again"
CONFIDENCE = 0.95
WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Variant:
    """Something to compare with nothing: `context` is entered before a block and left after it.

    `settle` is called after the last step and does what the steps have put off; its time counts as
    theirs, in equal parts.
    """

    name: str
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    settle: Callable[[], object] | None = None


@dataclass
class Blocks:
    """The blocks of one variant, in the order of the rounds."""

    step_ns: list[float] = field(default_factory=list)  # mean step of each block
    middle_step_ns: list[float] = field(default_factory=list)  # median step of each block
    tail_step_ns: list[float] = field(default_factory=list)  # 99th percentile of each block
    leave_ns: list[float] = field(default_factory=list)  # time to leave the variant's context


class Comparison:
    """Some variants, what they are compared on, and the blocks that were run so far."""

    def __init__(self, variants: Sequence[Variant], block: Callable[[], Sequence[float]]) -> None:
        """Takes what to compare.

        Args:
            variants: the baseline and the control are added.
            block: runs one block and returns the nanoseconds of each of its timed steps. It is
                called inside the variant's context, without the garbage collector; entering and
                leaving the context, and what the block runs before its first timed step, are not
                timed.
        """
        self._variants = [Variant(BASELINE), Variant(CONTROL), *variants]
        self._block = block
        self._blocks = {variant.name: Blocks() for variant in self._variants}

    def run_round(self, order: random.Random, *, keep: bool) -> None:
        """Runs a block of every variant; those of a warm-up are not kept."""
        for variant in order.sample(self._variants, len(self._variants)):
            _run_block(variant, self._block, self._blocks[variant.name], keep=keep)

    def estimates(self) -> dict[str, dict[str, Any]]:
        """What the blocks give, as `compare` returns it."""
        nothing, again = self._blocks[BASELINE], self._blocks[CONTROL]
        both = _mean(nothing, again)
        return {
            name: _estimates(of, nothing if name in (BASELINE, CONTROL) else both)
            for name, of in self._blocks.items()
        }


def compare(
    variants: Sequence[Variant],
    block: Callable[[], Sequence[float]],
    *,
    rounds: int,
    advance: Advance,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compare variants with doing nothing.

    Args:
        variants: as `Comparison` takes them.
        block: as `Comparison` takes it.
        rounds: rounds that count; two more go before them.
        advance: called with the share that is done.
        seed: of the order.

    Returns:
        For each variant: ``step_ns``, its mean step; ``ratio`` to doing nothing and ``added_ns``,
        both of mean steps, so that time stolen by a collector counts; ``middle_ratio``, of median
        steps, which ignores it; ``tail_ratio``, of the 99th percentiles of blocks; and
        ``leave_ns``. Each is an estimate as of `median_interval`.
    """
    comparison = Comparison(variants, block)
    order = random.Random(seed)
    with quiet_process():
        for number in range(WARM_UP_ROUNDS + rounds):
            comparison.run_round(order, keep=number >= WARM_UP_ROUNDS)
            advance((number + 1) / (WARM_UP_ROUNDS + rounds))
    return comparison.estimates()


def median_interval(values: Iterable[float]) -> dict[str, float]:
    """The median and its 95 % interval, by order statistics: no assumption on the distribution.

    Returns:
        ``median``, ``low``, ``high`` and ``count``. With fewer than six values, which cannot bound
        a median at 95 %, the interval is that of all values.
    """
    ordered = sorted(values)
    count = len(ordered)
    below = 0  # values left out at each end
    # How many of the 2**count ways to fall below and above the median leave the interval beside it.
    ways, tail = 1, 0
    while below < (count - 1) // 2:
        tail += ways
        if 2 * tail / 2**count > 1 - CONFIDENCE:
            break
        ways = ways * (count - below) // (below + 1)
        below += 1
    outermost = max(below - 1, 0)
    return {
        "median": statistics.median(ordered),
        "low": ordered[outermost],
        "high": ordered[count - 1 - outermost],
        "count": count,
    }


@contextmanager
def quiet_process() -> Iterator[None]:
    """One torch thread, which is required, and no garbage from before for the collector to see."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        raise RuntimeError("several torch threads make times meaningless; use one")
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _run_block(
    variant: Variant, block: Callable[[], Sequence[float]], blocks: Blocks, *, keep: bool
) -> None:
    gc.collect()
    context = variant.context()
    context.__enter__()
    gc.disable()
    try:
        steps = block()
        if variant.settle is not None:
            start_ns = perf_counter_ns()
            variant.settle()
            each_ns = (perf_counter_ns() - start_ns) / len(steps)
            steps = [step + each_ns for step in steps]
    finally:
        gc.enable()
        start_ns = perf_counter_ns()
        context.__exit__(None, None, None)
        leave_ns = perf_counter_ns() - start_ns
    if keep:
        blocks.step_ns.append(statistics.fmean(steps))
        blocks.middle_step_ns.append(statistics.median(steps))
        blocks.tail_step_ns.append(sorted(steps)[math.ceil(0.99 * len(steps)) - 1])
        blocks.leave_ns.append(leave_ns)


def _mean(one: Blocks, other: Blocks) -> Blocks:
    """What two variants give, round by round."""
    return Blocks(
        *(
            [statistics.fmean(pair) for pair in zip(values, others, strict=True)]
            for values, others in zip(vars(one).values(), vars(other).values(), strict=True)
        )
    )


def _estimates(blocks: Blocks, baseline: Blocks) -> dict[str, Any]:
    pairs = list(zip(blocks.step_ns, baseline.step_ns, strict=True))
    middles = zip(blocks.middle_step_ns, baseline.middle_step_ns, strict=True)
    tails = zip(blocks.tail_step_ns, baseline.tail_step_ns, strict=True)
    return {
        "step_ns": median_interval(blocks.step_ns),
        "ratio": median_interval(ours / theirs for ours, theirs in pairs),
        "added_ns": median_interval(ours - theirs for ours, theirs in pairs),
        "middle_ratio": median_interval(ours / theirs for ours, theirs in middles),
        "tail_ratio": median_interval(ours / theirs for ours, theirs in tails),
        "leave_ns": median_interval(blocks.leave_ns),
    }
