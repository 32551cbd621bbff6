"""Modules that call a wrapped module many times in a row and time it, for the cost of one call."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

import torch
from torch import nn

from skeleton import Leaf


class ChildLoop(nn.Module):
    """Calls its only child, which does nothing, inside one step."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.child = Leaf()
        self.calls = calls

    def forward(self, x: torch.Tensor) -> float:
        """The nanoseconds of one call."""
        child, calls = self.child, range(self.calls)
        start_ns = perf_counter_ns()
        for _ in calls:
            child(x)
        return (perf_counter_ns() - start_ns) / self.calls


class RootLoop(nn.Module):
    """A root that does nothing, stepped inside `generate()` as transformers does."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.cache = object()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: object | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> None:
        return None

    def generate(self, input_ids: torch.Tensor, commits: bool) -> float:
        """The nanoseconds of one decode step, with or without the note of what it commits."""
        mask, cache, steps = torch.ones_like(input_ids), self.cache, range(self.steps)
        self._step(input_ids, mask, cache)
        self._update_model_kwargs_for_generation(None, {})
        token = input_ids[:, -1:]
        start_ns = perf_counter_ns()
        if commits:
            for _ in steps:
                self._step(token, mask, cache)
                self._update_model_kwargs_for_generation(None, {})
        else:
            for _ in steps:
                self._step(token, mask, cache)
        return (perf_counter_ns() - start_ns) / self.steps

    def _step(self, ids: torch.Tensor, mask: torch.Tensor, cache: object) -> None:
        self(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def _update_model_kwargs_for_generation(
        self, outputs: object, model_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        return model_kwargs
