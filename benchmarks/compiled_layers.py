"""What layers inside a compiled model add to its step: operators that idle, and that are recorded.

Two copies of one model are compiled, one of them while a recording asks for its layers; they share
no code, as each has a class of its own. The one without operators is what the others are compared
with, in interleaved blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor, nn

import pertoken
from decode_overhead import recording_variant, require_complete
from paired import Variant, compare
from script import Advance, run_script

WIDTH, BLOCKS = 256, 4
WARM_UP_STEPS = 4


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
    """Compares a compiled step with the same with operators, idle and recorded."""
    rounds, steps = (3, 5) if smoke else (100, 100)
    backend = "eager" if smoke else "inductor"
    torch.manual_seed(0)
    x = torch.randn(1, WIDTH)
    plain, told = Plain().eval(), Told().eval()
    told.load_state_dict(plain.state_dict())
    run_plain = torch.compile(plain, fullgraph=True, backend=backend)
    run_told = torch.compile(told, fullgraph=True, backend=backend)
    recording = pertoken.profile(told, compiled_layers=True)
    runs = [run_plain]

    @contextmanager
    def idle() -> Iterator[None]:
        runs[0] = run_told
        yield
        runs[0] = run_plain

    def block() -> list[int]:
        run = runs[0]
        durations_ns = []
        for _ in range(WARM_UP_STEPS + steps):
            start_ns = perf_counter_ns()
            run(x)
            durations_ns.append(perf_counter_ns() - start_ns)
        return durations_ns[WARM_UP_STEPS:]

    with torch.no_grad():
        expected = run_plain(x)
        with recording:
            difference = float((run_told(x) - expected).abs().max())
        spans = len(recording.result().spans)
        variants = [
            Variant("operators, idle", idle),
            recording_variant("operators, recorded", recording, within=idle),
        ]
        estimates = compare(variants, block, rounds=rounds, advance=advance)
    require_complete(recording)
    return {
        "rounds": rounds,
        "steps_a_block": steps,
        "width": WIDTH,
        "blocks": BLOCKS,
        "operators_a_step": 2 * (spans - 1),
        "largest_difference": difference,
        "variants": estimates,
    }


if __name__ == "__main__":
    run_script("layers inside compiled steps", measure)
