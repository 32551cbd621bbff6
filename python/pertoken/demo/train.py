"""Trains the demo's model from nothing: `python -m pertoken.demo.train --output DIR`.

Run by whoever changes the model; the demo itself only reads what this wrote. About a minute on two
cores, no network, no data but Python's own documentation. The same Python, torch and flags give
the same weights on the same kind of processor. It needs torch 2.9 or newer, which brought Muon.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pertoken.demo.bytes_tokenizer import PADDING_ID, VOCABULARY_SIZE, decode, encode
from pertoken.demo.corpus import paragraphs
from pertoken.demo.model import CONTEXT_LENGTH, load_model
from pertoken.demo.stored_weights import LARGEST_NUMBER, WEIGHTS_NAME, save_weights

if TYPE_CHECKING:
    import torch

HELD_OUT_SHARE = 0.03
SAMPLE_PROMPT = "Return the "
SAMPLE_TOKENS = 240


@dataclass(frozen=True)
class Options:
    """What one training run was asked for; every field is a flag of the command line."""

    output: Path
    hidden: int
    layers: int
    intermediate: int
    steps: int
    batch: int
    length: int
    muon_rate: float
    adam_rate: float
    seed: int
    threads: int


@dataclass(frozen=True)
class Outcome:
    """How a training run went. Losses are means in nats a character."""

    first_loss: float
    last_loss: float
    seconds: float
    characters: int


@dataclass(frozen=True)
class Stored:
    """What was written, read back: what the demo will run. The loss is as those of the outcome."""

    parameters: int
    size_bytes: int
    held_out_loss: float
    held_out_characters: int
    sample: str


def main(arguments: list[str] | None = None) -> int:
    """Trains, saves and samples; returns the exit code."""
    options = _parse(arguments)
    try:
        import torch
        import transformers
    except ImportError as error:
        print(f"{error}: install it with pip install 'pertoken[demo]'", file=sys.stderr)
        return 1
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)

    print("reading Python's documentation ...", flush=True)
    train_ids, held_out_ids = _split(paragraphs(), options.seed)
    model = _new_model(options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {len(train_ids):,} characters to learn from", flush=True)

    outcome = _train(model, train_ids, options)
    _save(model, options.output)
    stored = _stored(options.output, held_out_ids, options.length)
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    text = _readme(options, outcome, stored, versions)
    (options.output / "README.md").write_text(text, encoding="utf-8")
    print(f"loss {stored.held_out_loss:.3f} nats a character on held-out text")
    print(f"{stored.sample}\nwritten to {options.output}")
    return 0


def _parse(arguments: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m pertoken.demo.train", description="Train the demo's model from nothing."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--intermediate", type=int, default=160)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16, help="sequences a step")
    parser.add_argument("--length", type=int, default=256, help="characters a sequence")
    parser.add_argument("--muon-rate", type=float, default=0.02, help="rate of the inner matrices")
    parser.add_argument("--adam-rate", type=float, default=0.01, help="rate of everything else")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    return Options(**vars(parser.parse_args(arguments)))


def _split(texts: list[str], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    random.Random(seed).shuffle(texts)
    held_out = int(len(texts) * HELD_OUT_SHARE)
    train, rest = texts[held_out:], texts[:held_out]
    return torch.tensor(encode("\n".join(train))), torch.tensor(encode("\n".join(rest)))


def _new_model(options: Options) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=options.hidden,
            intermediate_size=options.intermediate,
            num_hidden_layers=options.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=PADDING_ID,
        )
    )


def _train(model: Any, train_ids: torch.Tensor, options: Options) -> Outcome:
    import torch

    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=options.muon_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=options.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_at(step, options.steps))
        for optimizer in optimizers
    ]
    first = smooth = math.nan
    started = time.perf_counter()
    model.train()
    for step in range(options.steps):
        loss = _loss(model, _batch(train_ids, options))
        torch.autograd.backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for schedule in schedules:
            schedule.step()
        value = loss.item()
        first, smooth = (value, value) if step == 0 else (first, 0.95 * smooth + 0.05 * value)
        if step % 25 == 0 or step == options.steps - 1:
            elapsed = time.perf_counter() - started
            progress = f"step {step + 1:4d}/{options.steps}  loss {smooth:.3f}  {elapsed:4.0f} s"
            print(progress, flush=True)
    seconds = time.perf_counter() - started
    return Outcome(first, smooth, seconds, len(train_ids))


def _rate_at(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / 20)
    return warm_up * min(1.0, 2.0 * (1.0 - step / steps))


def _batch(ids: torch.Tensor, options: Options) -> torch.Tensor:
    import torch

    starts = torch.randint(len(ids) - options.length, (options.batch, 1))
    return ids[starts + torch.arange(options.length)]


def _loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
    import torch

    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def _save(model: Any, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(output)
    model.generation_config.save_pretrained(output)
    save_weights(output, {name: weight.detach() for name, weight in model.named_parameters()})


def _stored(output: Path, held_out_ids: torch.Tensor, length: int) -> Stored:
    import torch

    model = load_model(output)
    with torch.inference_mode():
        texts = held_out_ids[: len(held_out_ids) // length * length].view(-1, length)
        loss = float(_loss(model, texts))
    prompt = torch.tensor([encode(SAMPLE_PROMPT)])
    torch.manual_seed(0)
    ids = model.generate(prompt, max_new_tokens=SAMPLE_TOKENS, do_sample=True, temperature=0.6)
    return Stored(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        size_bytes=(output / WEIGHTS_NAME).stat().st_size,
        held_out_loss=loss,
        held_out_characters=len(held_out_ids),
        sample=decode(ids[0].tolist()),
    )


def _readme(options: Options, outcome: Outcome, stored: Stored, versions: str) -> str:
    flags = " \\\n  ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in vars(options).items()
        if name != "output"
    )
    held_out = f"{stored.held_out_characters:,} characters held out"
    return f"""# The demo's model

A Llama of {stored.parameters:,} parameters over single characters ({options.layers} layers of width
{options.hidden}, tied embeddings, vocabulary {VOCABULARY_SIZE}).
Its safetensors ({stored.size_bytes:,} bytes) hold each matrix as int8, whole numbers
from -{LARGEST_NUMBER} to {LARGEST_NUMBER}, with a float16 scale for each row: 4.4 bits a weight,
once a wheel has deflated them. It was trained from nothing on the prose of Python's own
documentation
(`pydoc_data.topics` and the docstrings of the standard library; Python Software Foundation License)
by this command, which wrote this folder:

```sh
python -m pertoken.demo.train --output DIR \\
  {flags}
```

| | |
|---|---|
| parameters | {stored.parameters:,} |
| characters learned from | {outcome.characters:,} |
| loss at the first step | {outcome.first_loss:.3f} nats a character |
| loss at the end, training text | {outcome.last_loss:.3f} nats a character |
| loss on {held_out}, as stored | {stored.held_out_loss:.3f} nats a character |
| training time | {outcome.seconds:.0f} s on {options.threads} threads |
| versions | Python {platform.python_version()}, {versions} |

What it writes after `{SAMPLE_PROMPT.strip()}`, at temperature 0.6:

> {" ".join(stored.sample.split())}
"""


if __name__ == "__main__":
    sys.exit(main())
