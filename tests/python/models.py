"""Tiny models with random weights, one builder an architecture, and prompts for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    logging,
)

logging.set_verbosity_error()

VOCABULARY = 48
PAD = 0
LAYERS = 2


def _build(seed: int, make: Callable[[], Any]) -> Any:
    """A model with its own seed, without an end of sequence: lengths are what a test asks for."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
    config = getattr(model, "generation_config", None)
    if config is not None:
        config.eos_token_id = config.bos_token_id = None
        config.pad_token_id = PAD
        config.do_sample = False
    return model.eval()


@cache
def llama(seed: int = 0, layers: int = LAYERS, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """A decoder with rotary positions."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _build(seed, lambda: LlamaForCausalLM(config))


@cache
def gpt2() -> GPT2LMHeadModel:
    """A decoder with learned positions and cross-attention arguments in its forward."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=16,
        n_layer=LAYERS,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    return _build(0, lambda: GPT2LMHeadModel(config))


@cache
def t5() -> T5ForConditionalGeneration:
    """An encoder and a decoder; its forward does not take ``logits_to_keep``."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=LAYERS,
        num_heads=2,
        decoder_start_token_id=1,
        pad_token_id=PAD,
        eos_token_id=None,
    )
    return _build(0, lambda: T5ForConditionalGeneration(config))


@cache
def mamba() -> MambaForCausalLM:
    """A recurrent model: its cache has no length."""
    config = MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=LAYERS,
        state_size=4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    return _build(0, lambda: MambaForCausalLM(config))


@cache
def bert() -> BertModel:
    """An encoder."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    return _build(0, lambda: BertModel(config))


class NextToken(nn.Module):
    """A language model of plain PyTorch: its forward takes ids by a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2)])
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        hidden = self.embedding(idx)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return self.head(hidden)


class Regressor(nn.Module):
    """A model that takes numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def prompt(rows: int = 1, length: int = 7, seed: int = 1) -> Tensor:
    """Random ids (rows, length), int64, none of them the padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (rows, length), generator=generator)


def left_padded(lengths: list[int], seed: int = 1) -> tuple[Tensor, Tensor]:
    """Ids (rows, longest) padded on the left to these lengths, and their mask."""
    ids = prompt(len(lengths), max(lengths), seed)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : ids.shape[1] - length] = 0
    return ids.masked_fill(mask == 0, PAD), mask
