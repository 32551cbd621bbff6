"""Small modules for tests of what the compiler inlines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from odd_modules import Stack


class Tower(Stack):
    """A stack that makes its first hidden state itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.embed(x))


class Odd(nn.Module):
    """Parts without a parameter, without a tensor in what they give, and with one deep inside."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.ReLU()
        self.length = Length()
        self.deep = Deep()

    def forward(self, x: Tensor) -> Tensor:
        return self.deep(self.plain(x))["found"][1] * self.length(x)


class Length(nn.Linear):
    """Gives no tensor."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: Tensor) -> int:
        return x.dim()


class Deep(Length):
    """Gives one deep inside."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"nothing": None, "found": (1, nn.Linear.forward(self, x))}


class Failing(nn.Module):
    """Parts that can fail."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Failable(), Failable()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Failable(nn.Module):
    """Fails on what is not a number, in an operator of the tests."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.pertoken_test.fail_on_nan(self.attn(x))
