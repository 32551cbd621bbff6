"""A compiled step without operators, with operators while nothing is recorded, and recorded.

Two copies of one model are compiled, one of them while a recording asks for its layers; they share
no code, as each has a class of its own. Blocks of steps run interleaved; figures are medians.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor, nn

import pertoken
from script import Advance, run_script

WIDTH, BLOCKS = 256, 4


class Block(nn.Module):
    """A feed-forward block with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        return x + self.mlp(self.norm(x))  # type: ignore[no-any-return]


class Plain(nn.Module):
    """Some blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(BLOCKS)])

    def forward(self, x: Tensor) -> Tensor:
        """All of them."""
        for layer in self.layers:
            x = layer(x)
        return x


class Told(Plain):
    """The same, compiled with operators."""

    def forward(self, x: Tensor) -> Tensor:
        """All of them."""
        for layer in self.layers:
            x = layer(x)
        return x


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Median nanoseconds of a step of each variant, and how many spans a recorded one has."""
    rounds, steps = (3, 5) if smoke else (40, 200)
    backend = "eager" if smoke else "inductor"
    x = torch.randn(1, WIDTH)
    plain, told = Plain().eval(), Told().eval()
    told.load_state_dict(plain.state_dict())
    run_plain = torch.compile(plain, fullgraph=True, backend=backend)
    run_told = torch.compile(told, fullgraph=True, backend=backend)
    times: dict[str, list[float]] = {"plain": [], "idle": [], "recorded": []}
    with torch.no_grad():
        expected = run_plain(x)
        with pertoken.profile(told, compiled_layers=True) as recording:
            equal = bool(torch.equal(run_told(x), expected))
        spans = len(recording.result().spans)
        for number in range(rounds):
            times["plain"].append(_block(run_plain, x, steps))
            times["idle"].append(_block(run_told, x, steps))
            with pertoken.profile(told, compiled_layers=True):
                times["recorded"].append(_block(run_told, x, steps))
            advance((number + 1) / rounds)
    return {
        "rounds": rounds,
        "spans_a_step": spans,
        "outputs_equal": equal,
        "step_ns": {name: median(values) for name, values in times.items()},
    }


def _block(run: Any, x: Tensor, steps: int) -> float:
    durations = []
    for _ in range(steps):
        start_ns = perf_counter_ns()
        run(x)
        durations.append(perf_counter_ns() - start_ns)
    return median(durations)


if __name__ == "__main__":
    run_script("layers inside compiled steps", measure)
