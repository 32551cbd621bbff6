"""vLLM's own engine on this machine: all of it is real but the worker, which follows a script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import TokensPrompt
from vllm.v1.engine.llm_engine import LLMEngine

from scripted_worker import ScriptedWorker

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
}
SETTINGS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "enforce_eager": True,
    "load_format": "dummy",
    "worker_cls": "scripted_worker.ScriptedWorker",
    "max_model_len": 128,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 24,
    "enable_prefix_caching": False,
    "async_scheduling": False,
}


def make_engine(folder: Path, *, stat_loggers: list[Any] | None = None, **given: Any) -> LLMEngine:
    """An engine whose scheduler, executor and worker are in this process."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    config = EngineArgs(model=str(folder), **{**SETTINGS, **given}).create_engine_config()
    # Without a GPU it is switched off, since that is all that a real worker could do.
    config.scheduler_config.async_scheduling = given.get("async_scheduling", False)
    return LLMEngine.from_vllm_config(config, stat_loggers=stat_loggers)


def worker_of(engine: LLMEngine) -> ScriptedWorker:
    """The worker inside."""
    return engine.engine_core.engine_core.model_executor.driver_worker.worker


def scheduler_of(engine: LLMEngine) -> Any:
    """The scheduler inside."""
    return engine.engine_core.engine_core.scheduler


def add(engine: LLMEngine, name: str, prompt: int, tokens: int, **given: Any) -> None:
    """Adds a request with a prompt of this length, and at most so many new tokens."""
    settings = {"max_tokens": tokens, "ignore_eos": True, "detokenize": False, **given}
    engine.add_request(
        name,
        TokensPrompt(prompt_token_ids=[number % 50 + 1 for number in range(prompt)]),
        SamplingParams(**settings),
    )
