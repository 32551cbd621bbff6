"""Which modules each form of `modules=` selects, on real architectures, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

import models
import pertoken
from odd_modules import Block, Shared, Stack, numbers, seeded
from pertoken import SelectionError

DECODER = {
    "vocab_size": models.VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**DECODER, num_local_experts=4)).eval()


def qwen_moe() -> Any:
    config = Qwen2MoeConfig(
        **DECODER, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8
    )
    return Qwen2MoeForCausalLM(config).eval()


def opt() -> Any:
    config = OPTConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return OPTForCausalLM(config).eval()


def encoder() -> nn.Module:
    # The fast path of evaluation runs a whole layer as one operation.
    layer = nn.TransformerEncoderLayer(16, 2, 24)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train()


def chain_of_blocks() -> nn.Module:
    return nn.Sequential(Block(), Block(), Block())


def flat_chain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def token_ids() -> torch.Tensor:
    return models.prompt()


def vectors() -> torch.Tensor:
    return torch.randn(2, 3, 16)


def blocks(names: list[str], parts: list[str], count: int = 2) -> set[str]:
    """Names of blocks and of their parts; ``{}`` stands for the number."""
    found = {name.format(i) for name in names for i in range(count)}
    return found | {f"{block}.{part}" for block in found for part in parts}


LLAMA = blocks(["model.layers.{}"], ["self_attn", "mlp"]) | {"model.embed_tokens", "lm_head"}
T5_ENCODER = blocks(["encoder.block.{}"], ["layer.0", "layer.1"]) | {"encoder.embed_tokens"}
T5_DECODER = blocks(["decoder.block.{}"], ["layer.0", "layer.1", "layer.2"])
T5_DECODER |= {"decoder.embed_tokens", "lm_head"}
BERT_EMBEDDINGS = {"embeddings"} | {
    f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")
}
LAYERS: list[tuple[Callable[[], Any], Callable[[], Any], set[str]]] = [
    (models.llama, token_ids, LLAMA),
    (
        models.gpt2,
        token_ids,
        blocks(["transformer.h.{}"], ["attn", "mlp"])
        | {"transformer.wte", "transformer.wpe", "lm_head"},
    ),
    (
        models.bert,
        token_ids,
        blocks(["encoder.layer.{}"], ["attention", "intermediate", "output"]) | BERT_EMBEDDINGS,
    ),
    (
        models.mamba,
        token_ids,
        blocks(["backbone.layers.{}"], ["mixer"]) | {"backbone.embeddings", "lm_head"},
    ),
    (mixtral, token_ids, LLAMA),
    (qwen_moe, token_ids, LLAMA),
    (
        opt,
        token_ids,
        blocks(["model.decoder.layers.{}"], ["self_attn", "fc1", "fc2"])
        | {"model.decoder.embed_tokens", "model.decoder.embed_positions", "lm_head"},
    ),
    (encoder, vectors, blocks(["layers.{}"], ["self_attn", "linear1", "linear2"])),
    (models.NextToken, token_ids, blocks(["layers.{}"], []) | {"embedding", "head"}),
    (chain_of_blocks, numbers, blocks(["{}"], ["attn", "mlp"], 3)),
    (flat_chain, numbers, {"0", "1", "2"}),
    (Stack, numbers, blocks(["layers.{}"], ["attn", "mlp"]) | {"head"}),
    (lambda: nn.Linear(4, 4), numbers, set()),
]


def sites(model: Any, call: Callable[[], Any], **selection: Any) -> set[str]:
    """The modules, besides the root, that had a span when `call` ran."""
    with pertoken.profile(model, **selection) as recording, torch.no_grad():
        call()
    profile = recording.result()
    assert len(profile.steps) == 1
    spans = profile.spans
    return set(spans["site"][spans["category"] == "module"].tolist()) - {type(model).__name__}


@pytest.mark.parametrize(("make", "inputs", "expected"), LAYERS)
def test_layers_are_blocks_their_parts_embeddings_and_the_head(
    make: Any, inputs: Any, expected: set[str]
) -> None:
    model = make()
    assert sites(model, lambda: model(inputs())) == expected
    assert sites(model, lambda: model(inputs()), modules="layers") == expected


def test_layers_of_an_encoder_and_its_decoder() -> None:
    model = models.t5()
    run = sites(
        model, lambda: model(input_ids=models.prompt(), decoder_input_ids=models.prompt(1, 2))
    )
    assert run - {"shared"} == T5_ENCODER | T5_DECODER


@pytest.mark.parametrize(("make", "inputs"), [case[:2] for case in LAYERS])
def test_root_and_all(make: Any, inputs: Any) -> None:
    model = make()
    assert sites(model, lambda: model(inputs()), modules="root") == set()
    called = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, module in model.named_modules()
        if name
    ]
    with torch.no_grad():
        model(inputs())
    for handle in handles:
        handle.remove()
    assert sites(model, lambda: model(inputs()), modules="all") == called


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("head", {"head"}),
        ("layers.*.mlp", {"layers.0.mlp", "layers.1.mlp"}),
        ("*.attn", {"layers.0.attn", "layers.1.attn"}),
        ("layers.[1]", {"layers.1"}),
        (["head", "layers.0", "layers.0"], {"head", "layers.0"}),
        (("*.0.attn",), {"layers.0.attn"}),
        ({"head"}, {"head"}),
        ((name for name in ["head", "layers.1"]), {"head", "layers.1"}),
        (lambda name, module: isinstance(module, nn.ReLU), {f"layers.{i}.mlp.1" for i in (0, 1)}),
        (lambda name, module: name.endswith("attn"), {"layers.0.attn", "layers.1.attn"}),
        ("layers.*", {name for name in blocks(["layers.{}"], ["attn", "mlp", "mlp.0", "mlp.1"])}),
    ],
)
def test_patterns_and_predicates(modules: Any, expected: set[str]) -> None:
    model = seeded(Stack)
    assert sites(model, lambda: model(numbers()), modules=modules) == expected


@pytest.mark.parametrize("modules", ["first", "second", "sec*"])
def test_a_shared_module_is_found_by_any_of_its_names(modules: str) -> None:
    model = seeded(Shared)
    assert sites(model, lambda: model(numbers()), modules=modules) == {"first"}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("nothing.*", "matches no module; the model's names are: layers, layers.0"),
        (["head", "nothing"], "'nothing' matches no module"),
        ("", "matches no module"),
        ("layer?", "only containers.*'layers\\.\\*'"),
        (lambda name, module: False, "the predicate selects none of the"),
        (lambda name, module: isinstance(module, nn.ModuleList), "selects none"),
        (None, "give 'root', 'layers', 'all'"),
        (3, "give 'root', 'layers', 'all'"),
        ([], "give 'root', 'layers', 'all'"),
        ([nn.ReLU], "give 'root', 'layers', 'all'"),
        (b"head", "give 'root', 'layers', 'all'"),
        (nn.Linear, "give 'root', 'layers', 'all'"),
        (nn.Linear(2, 2), "give 'root', 'layers', 'all'"),
        (torch.tensor(2), r"modules=tensor\(2\): give 'root', 'layers', 'all'"),
        ("layer", "did you mean 'layers'"),
        ("Layers", "did you mean 'layers'"),
        ("al", "did you mean 'all'"),
    ],
)
def test_what_selects_nothing_is_refused(modules: Any, message: str) -> None:
    model = seeded(Stack)
    with pytest.raises(SelectionError, match=message):
        pertoken.profile(model, modules=modules)


def test_a_predicates_own_error_passes_through() -> None:
    def fail(name: str, module: nn.Module) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pertoken.profile(seeded(Stack), modules=fail)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "not a NoneType"),
        (Stack, "not the class Stack; pass an instance"),
        ("llama", "not a str; load the model"),
        (print, "decorate it with @pertoken.profile"),
        (torch.ones(1), "not a Tensor"),
        ([Stack], r"to profile a pipeline, pass its \.model"),
    ],
)
def test_what_is_no_module_is_refused_with_what_to_pass(model: Any, message: str) -> None:
    with pytest.raises(SelectionError, match=rf"takes a torch\.nn\.Module, .*{message}"):
        pertoken.profile(model)


@pytest.mark.parametrize("limit", [10, "64MB", 1e8, None, 2**63, 2**70])
def test_a_memory_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(SelectionError, match="give at least"):
        pertoken.profile(seeded(Stack), memory_limit_bytes=limit)
