"""How the demo's weights lie in their file: small whole numbers, and a scale for each row.

Written by the training script, read by the demo. A matrix is stored as int8 under its own name and
as float16 of shape (rows, 1) under that name with `SCALE_SUFFIX` behind it; its values are the
products. What is no matrix is stored as float16. Few numbers are used, since a wheel is deflated:
4.4 bits a weight, for 0.047 nats of loss a character.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WEIGHTS_NAME = "model.safetensors"
SCALE_SUFFIX = ".scale"
LARGEST_NUMBER = 8


def save_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Writes `weights`, floating point of any precision, into `folder`, rounded as said above."""
    import torch
    from safetensors.torch import save_file

    stored: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if weight.ndim == 2:
            largest = weight.float().abs().amax(dim=1, keepdim=True)
            scale = (largest / LARGEST_NUMBER).clamp(min=torch.finfo(torch.float16).tiny).half()
            # Of a scale that was rounded down, the largest weight may be nearer to one number more.
            numbers = (weight.float() / scale.float()).round()
            stored[name] = numbers.clamp(-LARGEST_NUMBER, LARGEST_NUMBER).to(torch.int8)
            stored[name + SCALE_SUFFIX] = scale
        else:
            stored[name] = weight.half().contiguous()
    path = folder / WEIGHTS_NAME
    save_file(stored, path, metadata={"format": "pt"})
    path.chmod(0o644)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in `folder` as float32. Raises `OSError` where there is no such file."""
    from safetensors.torch import load_file

    stored = load_file(folder / WEIGHTS_NAME)
    weights = {name: value.float() for name, value in stored.items()}
    for name in [name for name in stored if name.endswith(SCALE_SUFFIX)]:
        weights[name.removesuffix(SCALE_SUFFIX)] *= weights.pop(name)
    return weights
