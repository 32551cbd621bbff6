"""The models whose decode is timed on a GPU: Llamas in bfloat16 with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    name: str
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


SHAPES = (
    Shape("1B", 2048, 8192, 16, 32, 8, 128_256),
    Shape("8B", 4096, 14336, 32, 32, 8, 128_256),
)
TOY = Shape("toy", 64, 128, 2, 4, 2, 128)


def gpu_llama(shape: Shape, device: str) -> Any:
    """The model, always with the same weights, which never ends a text by itself."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = LlamaForCausalLM(config)
            return model.eval()
    finally:
        torch.set_default_dtype(default)
