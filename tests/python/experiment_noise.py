"""Series of positive values that two variants could give, all of mean about 1, and their pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Noise = Callable[[np.random.Generator, tuple[int, int]], Any]


def autoregressive(random: np.random.Generator, shape: tuple[int, int], phi: float) -> Any:
    """Normal values of variance 1, each `phi` times the one before and something new."""
    new = random.standard_normal(shape) * np.sqrt(1.0 - phi * phi)
    values = np.empty(shape)
    values[:, 0] = random.standard_normal(shape[0])
    for at in range(1, shape[1]):
        values[:, at] = phi * values[:, at - 1] + new[:, at]
    return values


def _drifting(random: np.random.Generator, shape: tuple[int, int]) -> Any:
    at = np.arange(shape[1])
    level = 1.0 + at / shape[1] + 0.3 * np.sin(at / 97.0)
    return level * (1.0 + 0.1 * random.standard_normal(shape))


NOISES: dict[str, Noise] = {
    "independent": lambda random, shape: np.exp(0.3 * random.standard_normal(shape)),
    "spikes": lambda random, shape: (
        1.0 + 0.05 * random.random(shape) + 20.0 * (random.random(shape) < 0.01)
    ),
    "heavy tails": lambda random, shape: 1.0 + random.pareto(2.2, shape),
    "autocorrelated": lambda random, shape: np.exp(0.2 * autoregressive(random, shape, 0.6)),
    "slow": lambda random, shape: np.exp(0.2 * autoregressive(random, shape, 0.99)),
    "drifting": _drifting,
}


def block_pairs(
    random: np.random.Generator, noise: Noise, runs: int, pairs: int, length: int
) -> tuple[Any, Any]:
    """What randomised ABBA blocks make of one series where both variants are the same.

    Returns:
        The values of a and of b, each of shape (runs, pairs, 2 * length).
    """
    blocks = noise(random, (runs, pairs * 4 * length)).reshape(runs, pairs, 4, length)
    outer = np.concatenate([blocks[:, :, 0], blocks[:, :, 3]], axis=-1)
    inner = np.concatenate([blocks[:, :, 1], blocks[:, :, 2]], axis=-1)
    abba = random.random((runs, pairs, 1)) < 0.5
    return np.where(abba, outer, inner), np.where(abba, inner, outer)


def binomial_limit(runs: int, alpha: float) -> float:
    """What false alarms of a true probability `alpha` stay below in 99.9 of 100 seeds."""
    return runs * alpha + 3.1 * np.sqrt(runs * alpha * (1.0 - alpha))


def measured_values(scale: float = 1.0, seed: int = 0, spread: float = 0.05) -> Iterator[float]:
    """An endless stream of measured values with a mean of about `scale`."""
    generator = np.random.default_rng(seed)
    while True:
        yield from (scale * generator.lognormal(0.0, spread, 256)).tolist()


def bursts(random: np.random.Generator, sides: int, shared: float, values: int = 64) -> Any:
    """Lognormal values of calls, two to a side of a pair, that share a part of their variance.

    Returns:
        Shape (sides, values). The distribution of a value is the same whatever is shared.
    """
    of_call = np.sqrt(shared) * random.standard_normal((sides, 2, 1))
    own = np.sqrt(1.0 - shared) * random.standard_normal((sides, 2, values // 2))
    return np.exp(0.3 * (of_call + own)).reshape(sides, values)
