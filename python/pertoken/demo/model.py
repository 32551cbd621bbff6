"""The demo's model, from the files in this package: no network, no cache, no remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pertoken.demo.bytes_tokenizer import decode, encode
from pertoken.demo.stored_weights import read_weights
from pertoken.errors import MissingDependencyError

__all__ = ["CONTEXT_LENGTH", "MODEL_FOLDER", "decode", "encode", "load_model"]

MODEL_FOLDER = Path(__file__).parent / "weights"
CONTEXT_LENGTH = 1024


def load_model(folder: Path = MODEL_FOLDER) -> Any:
    """The `LlamaForCausalLM` in `folder`, in float32 on the CPU, ready to generate.

    Raises `MissingDependencyError` without torch or transformers, and `OSError` when the folder
    does not hold the model.
    """
    try:
        import torch  # noqa: F401  # transformers alone imports, and fails later
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"the demo needs torch and transformers ({error}): pip install 'pertoken[demo]'"
        ) from error
    config = transformers.LlamaConfig.from_pretrained(folder, local_files_only=True)
    weights = read_weights(folder)
    messages: Any = transformers.utils.logging
    bar_was_on = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()
    try:
        model: Any = transformers.LlamaForCausalLM.from_pretrained(
            None, config=config, state_dict=weights
        )
    finally:
        if bar_was_on:
            messages.enable_progress_bar()
    model.generation_config = transformers.GenerationConfig.from_pretrained(
        folder, local_files_only=True
    )
    # Versions of transformers differ in the dtype they load by default, and in how to ask for it.
    return model.float().eval()
