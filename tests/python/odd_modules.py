"""Small modules of plain PyTorch, among them ones that do what modules seldom do."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 4


class Block(nn.Module):
    """Attention and feed-forward parts by name, a residual round them."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.attn(x))


class Stack(nn.Module):
    """Two blocks in a list that has no forward, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Unhurried(Stack):
    """Its steps take long enough that any budget of theirs pays for all detail."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(3e-4)
        return super().forward(x)


class Recursive(nn.Module):
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = self.step(x)
        return self(x, depth - 1) if depth else x


class Shared(nn.Module):
    """One module under two names, and a weight under two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = self.first
        self.inner = Recursive()
        self.tied = nn.Linear(WIDTH, WIDTH)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.inner(self.second(self.first(x))))


class OwnCall(nn.Module):
    """Has a ``__call__`` of its own, which passes on, and a child that passes by."""

    def __init__(self) -> None:
        super().__init__()
        self.child = PassesBy()

    def __call__(self, x: Tensor, scale: float = 1.0) -> Any:
        return super().__call__(x) * scale

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x)


class PassesBy(nn.Module):
    """Goes straight to its forward, as past hooks."""

    def __call__(self, x: Tensor) -> Any:
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class OwnState(nn.Module):
    """Gives copies and pickles its whole ``__dict__``, which torch's own modules do not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Raising(nn.Module):
    """Raises from a child when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.child = RaisingChild()
        self.after = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, fail: bool = False) -> Tensor:
        return self.after(self.child(x, fail))


class RaisingChild(nn.Module):
    """The child."""

    def forward(self, x: Tensor, fail: bool) -> Tensor:
        if fail:
            raise LookupError("from the child")
        return x


class NoTensors(nn.Module):
    """Computes in Python alone, and asks for a cache: torch itself aborts in threads that end."""

    def __init__(self, children: int = 2) -> None:
        super().__init__()
        self.parts = nn.ModuleList([NoTensors(0) for _ in range(children)])

    def forward(self, input_ids: Tensor, past_key_values: Any = None) -> int:
        return sum(part(input_ids) for part in self.parts) + sum(range(50))

    def get_seq_length(self) -> int:
        """As a cache does."""
        return sum(range(3))


def doubled(module: nn.Module, x: Tensor) -> Tensor:
    """For a ``forward`` that is a `functools.partial`, as quantisation wrappers make them."""
    return type(module).forward(module, x) * 2


def partial_forward() -> Stack:
    """A stack, one layer of which has a partial as its own forward."""
    model = Stack()
    layer = model.layers[0]
    layer.forward = functools.partial(doubled, layer)
    return model


def method_forward() -> Stack:
    """A stack whose root and one layer have bound methods as their own forward."""
    model = Stack()
    model.forward = model.forward
    model.head.forward = model.head.forward
    return model


def seeded(make: Any, seed: int = 0) -> Any:
    """A model with the weights of a seed, evaluating."""
    torch.manual_seed(seed)
    return make().eval()


def numbers(rows: int = 3) -> Tensor:
    """An input for each of them, float32 (rows, WIDTH)."""
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))
