"""The pass over the vocabulary, against PyTorch in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pertoken import _native
from pertoken.tensor_memory import memory_of

INSTRUCTIONS = ("reference", *_native.instruction_sets())
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def stats(logits: Tensor, instructions: str = "") -> tuple[float, float, float, float]:
    """Top-1 probability, margin, entropy and the log of the sum of exponentials."""
    memory = memory_of(logits)
    result: tuple[float, float, float, float] = _native.logit_stats(
        memory.address, memory.format, memory.shape, memory.strides_bytes, instructions
    )
    return result


def expected(logits: Tensor) -> tuple[float, float, float, float]:
    """The same by PyTorch, one function after the other."""
    wide = logits.double()
    log_probs = wide.log_softmax(0)
    probs = log_probs.exp()
    top = torch.cat([probs.topk(min(2, len(probs))).values, probs.new_zeros(1)])
    entropy = -torch.xlogy(probs, probs).sum()
    log_sum = wide.logsumexp(0).item()
    if log_sum == -math.inf:  # all are masked
        return (math.nan,) * 4
    return top[0].item(), (top[0] - top[1]).item(), entropy.item(), log_sum


def check(logits: Tensor) -> None:
    wanted = expected(logits)
    for instructions in INSTRUCTIONS:
        found = stats(logits, instructions)
        exact = instructions == "reference" or logits.dtype == torch.float64
        for name, value, right in zip(
            ("top1_prob", "margin", "entropy", "log_sum"), found, wanted, strict=True
        ):
            bound = (1e-12 if exact else 2e-6) * max(1, abs(right))
            assert value == pytest.approx(right, abs=bound, nan_ok=True), (instructions, name)


def random_logits(count: int, seed: int, spread: float) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * spread


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 5000) | st.sampled_from([32_000, 50_257, 128_256, 300_000]),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0.0, 0.1, 1.0, 12.0, 300.0]),
    shift=st.sampled_from([0.0, -4000.0, 1e4]),
    masked=st.sampled_from([0.0, 0.3, 0.999]),
    ties=st.integers(1, 4),
    stride=st.integers(1, 3),
    seed=st.integers(0, 1 << 32),
)
def test_any_vocabulary(
    count: int,
    dtype: torch.dtype,
    spread: float,
    shift: float,
    masked: float,
    ties: int,
    stride: int,
    seed: int,
) -> None:
    """Of any size, spread and place, with masked logits, with ties, and as every n-th of others."""
    if count > 10_000:
        stride = 1
    logits = (random_logits(count * stride, seed, spread) + shift).to(dtype)[::stride]
    logits[torch.arange(count) % 997 < int(masked * 997)] = -math.inf
    largest = logits.max()
    logits[torch.randint(count, (ties,), generator=torch.Generator().manual_seed(seed))] = largest
    check(logits)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 3000),
    wrong=st.sampled_from([math.nan, math.inf]),
    at=st.floats(0, 0.999),
    dtype=st.sampled_from(DTYPES),
)
def test_a_logit_that_is_no_number_leaves_none(
    count: int, wrong: float, at: float, dtype: torch.dtype
) -> None:
    logits = random_logits(count, count, 3).to(dtype)
    logits[int(at * count)] = wrong
    for instructions in INSTRUCTIONS:
        assert all(math.isnan(value) for value in stats(logits, instructions))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_known_beforehand(dtype: torch.dtype) -> None:
    cases = [
        ([5.0], (1, 1, 0, 5)),
        ([0.0] * 4, (0.25, 0, math.log(4), math.log(4))),
        ([-math.inf, 2.0, -math.inf], (1, 1, 0, 2)),
        ([-math.inf] * 20, (math.nan,) * 4),
        ([torch.finfo(dtype).min, torch.finfo(dtype).max], (1, 1, 0, torch.finfo(dtype).max)),
    ]
    for values, right in cases:
        for instructions in INSTRUCTIONS:
            found = stats(torch.tensor(values, dtype=dtype), instructions)
            assert found == pytest.approx(right, rel=1e-6, nan_ok=True), instructions


def test_a_row_of_a_transposed_and_of_an_expanded_tensor() -> None:
    batch = random_logits(6 * 500, 1, 4).reshape(500, 6).T
    check(batch[3])
    check(torch.tensor(2.5).expand(700))


def test_the_memory_is_left_alone() -> None:
    logits = random_logits(5000, 3, 2)
    before = logits.clone()
    stats(logits)
    assert torch.equal(logits, before)
