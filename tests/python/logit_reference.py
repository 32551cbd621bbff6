"""What logits say of tokens, by PyTorch in float64, and models whose logits say something."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

SIGNALS = ("top1_prob", "margin", "entropy", "logprob")


def sharp(model: Any) -> Any:
    """A copy whose logits differ: those of random weights are nearly the same."""
    copied = copy.deepcopy(model)
    head = copied.get_output_embeddings()
    head.weight = nn.Parameter(head.weight * 40, requires_grad=False)
    return copied


def signals(logits: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """Of logits (..., vocabulary) and the tokens chosen from them, by PyTorch in float64."""
    log_probs = logits.double().log_softmax(-1)
    probs = log_probs.exp()
    top = probs.topk(2, -1).values
    return {
        "top1_prob": top[..., 0],
        "margin": top[..., 0] - top[..., 1],
        "entropy": -torch.xlogy(probs, probs).sum(-1),
        "logprob": log_probs.gather(-1, chosen[..., None])[..., 0],
    }
