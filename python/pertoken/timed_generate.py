"""A call of `generate()` that tells how long it and each of its decode steps took."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from pertoken.experiment.observations import Measured

GENERATE_NS = "generate_ns"
STEP_NS = "step_ns"


class TimedGenerate:
    """Generates the same number of tokens from the same random prompt, whenever it is called.

    Args:
        model: with transformers' `generate()`.
        prompt_tokens: length of the prompt.
        new_tokens: tokens to generate, at least 2.
        clock: nanoseconds.
    """

    def __init__(
        self,
        model: Any,
        prompt_tokens: int,
        new_tokens: int,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        import torch

        self._model = model
        self._clock = clock
        generator = torch.Generator().manual_seed(0)
        vocabulary = model.get_input_embeddings().num_embeddings
        ids = torch.randint(0, vocabulary, (1, prompt_tokens), generator=generator)
        ids = ids.to(model.device)
        self._arguments = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "min_new_tokens": new_tokens,
            "max_new_tokens": new_tokens,
            "do_sample": False,
        }
        self._on_gpu = ids.is_cuda

    def __call__(self) -> Measured:
        """Generates; gives ``generate_ns``, of the call, and ``step_ns``, of each decode step."""
        from transformers import StoppingCriteriaList

        ends_ns: list[int] = []
        never = _never(lambda: ends_ns.append(self._clock()))
        criteria: Any = StoppingCriteriaList([never])
        self._wait()
        start_ns = self._clock()
        self._model.generate(**self._arguments, stopping_criteria=criteria)
        self._wait()
        dur_ns = self._clock() - start_ns
        steps_ns = [end - start for start, end in pairwise(ends_ns)]
        return Measured({GENERATE_NS: dur_ns, STEP_NS: steps_ns})

    def _wait(self) -> None:
        """Until the GPU has done what it was given."""
        if self._on_gpu:
            import torch

            torch.cuda.synchronize()


def _never(after_step: Callable[[], None]) -> Any:
    """A criterion that never stops, and is told of each step."""
    import torch
    from transformers import StoppingCriteria

    class Never(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            after_step()
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return Never()
