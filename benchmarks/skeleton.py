"""A model that computes nothing, so that what is measured is the recording alone.

It has the module tree of the tiny Llama and a `generate()` with the steps of transformers' own: a
recording of it is as one of the real model, a million spans in about a second.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import pertoken

LAYERS = 4
# Every module but the list of layers, and the time in generate() between two steps.
SPANS_A_STEP = 59
STEPS_A_REQUEST = 400


class Leaf(nn.Module):
    """Returns what it is given."""

    def forward(self, x: Any) -> Any:
        return x


class Chain(nn.Module):
    """Calls its children one after the other."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self._chain = tuple(children.values())

    def forward(self, x: Any) -> Any:
        for child in self._chain:
            x = child(x)
        return x


def _leaves(*names: str) -> dict[str, nn.Module]:
    return {name: Leaf() for name in names}


def _layer() -> Chain:
    return Chain(
        input_layernorm=Leaf(),
        self_attn=Chain(**_leaves("q_proj", "k_proj", "v_proj", "o_proj")),
        post_attention_layernorm=Leaf(),
        mlp=Chain(**_leaves("gate_proj", "act_fn", "up_proj", "down_proj")),
    )


class Body(nn.Module):
    """All but the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = Leaf()
        self.rotary_emb = Leaf()
        self.layers = nn.ModuleList(_layer() for _ in range(LAYERS))
        self.norm = Leaf()

    def forward(self, x: Any) -> Any:
        x = self.rotary_emb(self.embed_tokens(x))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Skeleton(nn.Module):
    """The modules of the tiny Llama, called in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Body()
        self.lm_head = Leaf()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: object | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> Any:
        return self.lm_head(self.model(input_ids))

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        """Makes the calls of a greedy decode; the ids it returns are the prompt's and zeros."""
        cache, mask, fed = object(), torch.ones_like(input_ids), input_ids
        for _ in range(max_new_tokens):
            self(
                input_ids=fed,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            self._update_model_kwargs_for_generation(None, {})
            fed = input_ids[:, -1:]
        return torch.nn.functional.pad(input_ids, (0, max_new_tokens))

    def _update_model_kwargs_for_generation(
        self, outputs: object, model_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        return model_kwargs


def record_spans(recording: pertoken.Recording, model: Skeleton, spans: int) -> None:
    """Runs the model, which is being recorded, until it has made at least `spans` spans.

    Each request but the last is drained before the next one: without computing anything, a model
    makes more records than any collector should have to take.
    """
    prompt = torch.ones((1, 8), dtype=torch.int64)
    steps = -(-spans // SPANS_A_STEP)
    while steps > 0:
        recording.recorder.drain()
        model.generate(prompt, max_new_tokens=min(steps, STEPS_A_REQUEST))
        steps -= STEPS_A_REQUEST


def recording_of_skeleton(spans: int) -> pertoken.Recording:
    """A recording of every module, stopped, that holds at least `spans` spans and lost none."""
    model = Skeleton()
    with pertoken.profile(model, modules="all") as recording:
        record_spans(recording, model, spans)
    recording.recorder.drain()
    return recording


def require_spans(profile: pertoken.Profile, spans: int) -> None:
    """Raises when a profile holds less than it should."""
    if len(profile.spans) < spans or profile.losses["records_dropped"]:
        raise RuntimeError(f"{len(profile.spans)} spans of {spans}; losses: {profile.losses}")
