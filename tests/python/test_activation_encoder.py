"""A trained encoder: its real activations are counted exactly, without their padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import pertoken
from pertoken import Histogram
from requirements_check import require

SENTENCES = ["Short.", "A sentence that is longer than the other one, by far.", "And a third one."]


@pytest.fixture(scope="module")
def encoder() -> tuple[Any, Any]:
    folder: Path = require("minilm")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layer_of_a_padded_batch_is_counted_exactly(encoder: Any, dtype: torch.dtype) -> None:
    tokenizer, model = encoder
    model.to(dtype)
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"].bool()
    assert not mask.all()
    expected: dict[str, Histogram] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output if isinstance(output, Tensor) else output[0]
            expected[name] = Histogram.from_values(hidden[mask])

        return hook

    names = [f"encoder.layer.{i}" for i in range(6)]
    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    with torch.inference_mode(), pertoken.profile(model, activations="layers") as recording:
        model(**inputs)
    for handle in handles:
        handle.remove()
    profile = recording.result()
    for name in names:
        found = profile.histogram(name)
        assert found.count == expected[name].count == int(mask.sum()) * 384
        assert (found.min, found.max) == (expected[name].min, expected[name].max)
        for side in ("positive", "negative"):
            assert (
                getattr(found, side).counts.tolist()
                == getattr(expected[name], side).counts.tolist()
            )
    assert profile.first_nonfinite() is None
    assert profile.summary().as_dict()["activations"]["unhealthy_sites"] == []
    assert profile.losses["observations_skipped"] == {}


def test_layers_of_a_trained_model_differ_in_what_they_put_out(encoder: Any) -> None:
    """What the distributions are for: a layer norm keeps the spread, and the tails are real."""
    tokenizer, model = encoder
    model.float()
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.inference_mode(), pertoken.profile(model, activations="layers") as recording:
        model(**inputs)
    layers = [recording.result().histogram(f"encoder.layer.{i}") for i in range(6)]
    assert all(0.1 < layer.variance < 2 for layer in layers)
    assert all(layer.max > 5 * layer.quantile(0.99) for layer in layers[1:4])


@pytest.mark.parametrize(("layer", "call"), [(0, 0), (3, 2), (5, 1)])
def test_a_nan_planted_in_a_layer_of_the_encoder_is_found_there(
    encoder: Any, layer: int, call: int
) -> None:
    tokenizer, model = encoder
    model.float()
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    calls = iter(range(3))

    def spoil(module: nn.Module, args: Any, output: Any) -> Any:
        if next(calls) == call:
            (output if isinstance(output, Tensor) else output[0])[1, 2, 3] = float("nan")

    site = f"encoder.layer.{layer}.output"
    handle = model.get_submodule(site).register_forward_hook(spoil)
    with torch.inference_mode():
        recording = pertoken.profile(model, activations="layers", activation_every=1)
        with recording:
            for _ in range(3):
                model(**inputs)
    handle.remove()
    found = recording.result().first_nonfinite()
    assert found is not None
    assert (found.site, found.step, found.token) == (site, call, -1)  # an encoder has no tokens
