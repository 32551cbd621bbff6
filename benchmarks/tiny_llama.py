"""The model whose decode is timed: a Llama of 4 layers x 256, 59 modules, random weights."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

VOCABULARY = 1024
PROMPT_TOKENS = 16
WARM_UP_STEPS = 4


def tiny_llama(vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """The model, always with the same weights, which never ends a text by itself."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.train(False)
    return model


def prompt_ids() -> torch.Tensor:
    """A prompt of random ids (1, 16), int64."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, VOCABULARY, (1, PROMPT_TOKENS), generator=generator)


def do_nothing() -> None:
    """What runs before a step if nothing else is to."""


@torch.inference_mode()
def decode_by_hand(
    model: Any, prompt: torch.Tensor, steps: int, before_step: Callable[[], None] = do_nothing
) -> list[int]:
    """Decodes greedily in a loop of its own; the nanoseconds of each step after the warm-up.

    Before each of those `before_step` is called, outside of its time.
    """
    output = model(input_ids=prompt, use_cache=True)
    cache = output.past_key_values
    times_ns = []
    for number in range(WARM_UP_STEPS + steps):
        if number >= WARM_UP_STEPS:
            before_step()
        start_ns = perf_counter_ns()
        token = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=token, past_key_values=cache, use_cache=True)
        times_ns.append(perf_counter_ns() - start_ns)
    return times_ns[WARM_UP_STEPS:]


class DecodeSteps:
    """Decodes texts greedily in a loop by hand, of which each call is the next step.

    Args:
        model: what decodes.
        prompt: what each text begins with; its prefill is a call of its own.
        steps: of a text, besides its prefill.
    """

    def __init__(self, model: Any, prompt: torch.Tensor, steps: int) -> None:
        self._model = model
        self._prompt = prompt
        self._steps = steps
        self._left = 0
        self._output: Any = None

    @torch.inference_mode()
    def __call__(self) -> None:
        if self._left == 0:
            self._output = self._model(input_ids=self._prompt, use_cache=True)
            self._left = self._steps
            return
        token = self._output.logits[:, -1:].argmax(-1)
        cache = self._output.past_key_values
        self._output = self._model(input_ids=token, past_key_values=cache, use_cache=True)
        self._left -= 1


class StepClock(StoppingCriteria):
    """Never stops; notes how long the steps of `generate()` take, from the end of the one before.

    Args:
        steps: to note, after the prefill and the warm-up.
        before_step: called before each of them, outside of its time.
        device: where the ids are.
    """

    def __init__(self, steps: int, before_step: Callable[[], None], device: torch.device) -> None:
        self.times_ns: list[int] = []
        self._steps = steps
        self._before_step = before_step
        self._begun_ns = 0
        self._go_on = torch.zeros(1, dtype=torch.bool, device=device)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.times_ns.append(perf_counter_ns() - self._begun_ns)
        if 1 + WARM_UP_STEPS <= len(self.times_ns) < 1 + WARM_UP_STEPS + self._steps:
            self._before_step()
        self._begun_ns = perf_counter_ns()
        return self._go_on


def decode_by_generate(
    model: Any, prompt: torch.Tensor, steps: int, before_step: Callable[[], None] = do_nothing
) -> list[int]:
    """Decodes greedily by `generate()`; the nanoseconds between the ends of its steps.

    The prefill and the steps of the warm-up are left out. What `generate()` does between two
    forwards is part of a step. Before each of those `before_step` is called, outside of its time.
    """
    clock = StepClock(steps, before_step, prompt.device)
    model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=1 + WARM_UP_STEPS + steps,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    return clock.times_ns[1 + WARM_UP_STEPS :]
