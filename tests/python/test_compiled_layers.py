"""Spans of modules that the compiler inlines.

Where they stand, whose they are, what they cost the compiler, and that nothing but their operators
is left in what was compiled.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._dynamo.variables.nn_module import UnspecializedNNModuleVariable
from transformers import CompileConfig

import invariants
import models
import pertoken
from compiled_modules import Failing, Odd, Tower
from compiler import compilations, forget_compiled, fresh_compiler, tensor_operator
from odd_modules import Raising, Stack, numbers, seeded
from pertoken import Profile, compiled_layers
from residue import assert_untouched

LAYERS = ["layers.0.attn", "layers.0.mlp", "layers.0"]
LAYERS += ["layers.1.attn", "layers.1.mlp", "layers.1", "head"]
TOO_LATE = "begin it before the first compiled call"


@pytest.fixture(autouse=True)
def compiles_afresh() -> Iterator[None]:
    with fresh_compiler():
        yield


def compiled(model: Any, backend: str = "eager", **options: Any) -> Any:
    return torch.compile(model, backend=backend, fullgraph=True, **options)


def record(model: Any, **options: Any) -> pertoken.Recording:
    return pertoken.profile(model, compiled_layers=True, **options)


def sites(recording: pertoken.Recording) -> list[str]:
    """Of all spans, in the order in which they ended."""
    profile = recording.result()
    invariants.check_spans(profile)
    return profile.spans["site"].tolist()


def parents(profile: Profile) -> dict[str, str]:
    """The site of the parent of each site's spans."""
    spans = profile.spans
    names = dict(zip(spans["span"].tolist(), spans["site"].tolist(), strict=True))
    pairs = zip(spans["site"].tolist(), spans["parent"].tolist(), strict=True)
    return {site: names.get(parent, "") for site, parent in pairs}


def reasons(recording: pertoken.Recording) -> str:
    return " ".join(recording.result().losses["reasons"])


def generated_order(code: str) -> list[str]:
    """What the generated code calls, in its order: our operators and kernels."""
    body = code[code.index("def call(") :]
    found = []
    for line in body.splitlines():
        if "torch.ops.pertoken." in line:
            found.append(line.partition("torch.ops.pertoken.")[2].partition("_")[0])
        elif "extern_kernels." in line:
            found.append("product")
        elif line.strip().startswith("cpp_fused"):
            found.append("kernel")
    return found


def test_inductor_leaves_the_operators_where_the_modules_begin_and_end() -> None:
    from torch._inductor.utils import run_and_get_code

    model = seeded(Tower)
    run = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    with record(model) as recording:
        output, (code,) = run_and_get_code(run, numbers())
        for _ in range(2):
            assert torch.equal(run(numbers()), output)
    block = ["enter", "enter", "product", "leave", "enter", "product", "kernel", "leave"]
    block += ["kernel", "leave"]
    assert generated_order(code) == ["product", *block, *block, "enter", "product", "leave"]
    assert sites(recording) == [*LAYERS, "Tower"] * 3
    assert recording.result().losses["inlined_modules"] == []
    with_layers = compilations()
    assert torch.equal(run(numbers()), output)
    assert compilations() == with_layers

    forget_compiled()
    plain = torch.compile(seeded(Tower), fullgraph=True, mode="reduce-overhead")
    assert torch.equal(plain(numbers()), output)
    plain(numbers())
    assert compilations() == with_layers


def test_spans_of_a_llama_stand_in_each_other_as_its_modules_do() -> None:
    model = models.llama.__wrapped__()
    run = compiled(model)
    with record(run) as recording:
        run(models.prompt(2), use_cache=False)
    profile = recording.result()
    invariants.check(profile)
    above = parents(profile)
    for block in ("model.layers.0", "model.layers.1"):
        assert above[block + ".self_attn"] == above[block + ".mlp"] == block
        assert above[block] == "LlamaForCausalLM"
    assert above["lm_head"] == above["model.embed_tokens"] == "LlamaForCausalLM"
    assert len(profile.spans) == 9
    assert set(profile.spans["step"].tolist()) == {0}


def generate(model: Any, fullgraph: bool) -> Any:
    config = CompileConfig(backend="eager", fullgraph=fullgraph)
    config._compile_all_devices = True
    return model.generate(
        models.prompt(), max_new_tokens=4, cache_implementation="static", compile_config=config
    )


def test_transformers_own_compiled_decode_has_layers_in_every_step() -> None:
    control, model = models.llama.__wrapped__(), models.llama.__wrapped__()
    expected = [generate(control, True) for _ in range(3)]
    counts = compilations()
    forget_compiled()
    with record(model) as recording:
        outputs = [generate(model, True) for _ in range(2)]
    outputs.append(generate(model, True))
    assert compilations() == counts
    assert all(map(torch.equal, outputs, expected))
    assert_untouched(model, control)
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["kind"].tolist() == ["prefill", "decode", "decode", "decode"] * 2
    calls = Counter(profile.spans["site"].tolist())
    names = [f"model.layers.{i}{part}" for i in (0, 1) for part in ("", ".self_attn", ".mlp")]
    assert {calls[name] for name in (*names, "lm_head", "LlamaForCausalLM")} == {8}
    assert profile.losses["inlined_modules"] == []


@pytest.mark.parametrize("dynamic", [False, True])
def test_recordings_come_and_go_without_a_recompile(dynamic: bool) -> None:
    counts = []
    for recorded in (False, True):
        forget_compiled()
        model = seeded(Stack)
        run = compiled(model, dynamic=dynamic)
        for rows in (3, 4, 5):
            recording = record(model, modules="all" if rows == 4 else "layers")
            if recorded:
                recording.start()
            run(numbers(rows))
            recording.stop()
            run(numbers(rows))
        counts.append(compilations())
    assert counts[0] == counts[1]
    assert set(LAYERS) <= set(sites(recording))


def test_modules_that_share_compiled_code_are_told_apart() -> None:
    model, other = seeded(Stack), seeded(Stack)
    for layer in (*model.layers, *other.layers):
        layer.compile(backend="eager", fullgraph=True)
    with record(model) as recording:
        model(numbers())
        other(numbers())
        model(numbers())
    assert counters["stats"]["unique_graphs"] == 1
    assert sites(recording) == [*LAYERS, "Stack"] * 2
    assert parents(recording.result())["layers.1.mlp"] == "layers.1"
    assert recording.result().losses["inlined_modules"] == []


def test_a_module_compile_and_parameters_that_move() -> None:
    model = seeded(Stack)
    with record(model) as recording:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        model.compile(backend="eager", fullgraph=True)
        model(numbers())
    assert sites(recording) == [*LAYERS, "Stack"]


def test_what_was_compiled_before_is_named_and_heals_by_a_reset() -> None:
    model = seeded(Stack)
    run = compiled(model)
    run(numbers())
    with record(model) as recording:
        run(numbers())
        assert sites(recording) == ["Stack"]
        assert set(LAYERS) <= set(recording.result().losses["inlined_modules"])
        assert TOO_LATE in reasons(recording)
        assert TOO_LATE in " ".join(str(recording.summary()).split())
        torch._dynamo.reset()
        run(numbers())
    assert sites(recording) == ["Stack", *LAYERS, "Stack"]


def test_recordings_get_what_they_asked_for() -> None:
    """Of a graph with all layers: all of them, some of them, none, and nothing when none runs."""
    model = seeded(Stack)
    run = compiled(model)
    everything, some = record(model, modules="all"), record(model, modules=["layers.*.mlp"])
    without = pertoken.profile(model)
    with everything, some, without:
        run(numbers())
    run(numbers())
    assert set(LAYERS) <= set(sites(everything))
    assert sites(some) == ["layers.0.mlp", "layers.1.mlp", "Stack"]
    assert sites(without) == ["Stack"]
    assert set(LAYERS) <= set(without.result().losses["inlined_modules"])
    assert TOO_LATE not in reasons(without)
    with record(model) as later:
        run(numbers())
    assert sites(later) == [*LAYERS, "Stack"]
    assert counters["stats"]["unique_graphs"] == 1


def test_steps_that_a_budget_leaves_out_have_none() -> None:
    model = seeded(Stack)
    run = compiled(model)
    with record(model, budget=1e-6) as recording:
        for _ in range(200):
            run(numbers())
    calls = Counter(sites(recording))
    assert calls["Stack"] == 200
    assert 0 < calls["layers.0"] == calls["head"] < 200


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_are_the_same(backend: str) -> None:
    model, control = seeded(Stack), seeded(Stack)
    with torch.enable_grad():
        compiled(control, backend)(numbers()).sum().backward()
        forget_compiled()
        with record(model) as recording:
            compiled(model, backend)(numbers()).sum().backward()
    for ours, theirs in zip(model.parameters(), control.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert sites(recording) == [*LAYERS, "Stack"]


class Checkpointed(Stack):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        return self.head(x)


class Mapped(Stack):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.func.vmap(lambda row: self.layers[1](self.layers[0](row)))(x))


@pytest.mark.parametrize("make", [Checkpointed, Mapped])
def test_a_graph_inside_the_graph_stays_as_it_is(make: Callable[[], Any]) -> None:
    model = seeded(make)
    with torch.enable_grad(), record(model) as recording:
        output = compiled(model, "aot_eager")(numbers())
    assert torch.allclose(output, seeded(make)(numbers()))
    assert not set(sites(recording)) & set(LAYERS[:6])
    assert set(LAYERS[:6]) <= set(recording.result().losses["inlined_modules"])
    assert "a graph inside the compiled one" in reasons(recording)


def test_modules_that_cannot_be_told() -> None:
    model = seeded(Odd)
    with record(model, modules="all") as recording:
        output = compiled(model)(numbers())
    assert torch.equal(output, seeded(Odd)(numbers()))
    assert sites(recording) == ["deep", "Odd"]
    assert recording.result().losses["inlined_modules"] == ["plain", "length"]
    assert "no parameter of their own: plain." in reasons(recording)


@pytest.fixture
def failing_operator() -> Iterator[None]:
    def fail_on_nan(x: Tensor) -> Tensor:
        if x.isnan().any():
            raise LookupError("not a number")
        return x.clone()

    with tensor_operator("fail_on_nan", fail_on_nan):
        yield


def test_an_exception_passes_and_closes_what_was_open(failing_operator: None) -> None:
    model = seeded(Failing)
    run = compiled(model)
    first, second = record(model), record(model, modules="all")
    with first, second:
        for x in (numbers(), numbers() * torch.nan, numbers()):
            try:
                run(x)
            except LookupError as error:
                assert str(error) == "not a number"
    whole = ["layers.0.attn", "layers.0", "layers.1.attn", "layers.1", "Failing"]
    cut = ["layers.0.attn", "layers.0", "Failing"]
    for recording in (first, second):
        assert sites(recording) == [*whole, *cut, *whole]
        assert recording.result().spans["step"].tolist() == [0] * 5 + [1] * 3 + [2] * 5


def test_a_recording_that_stops_inside_a_compiled_call(failing_operator: None) -> None:
    """More often than calls can be open at once in a thread."""
    model = seeded(Failing)
    run = compiled(model)
    with record(model):
        run(numbers())
    held: list[pertoken.Recording] = []
    real = compiled_layers._native.enter_layer
    for _ in range(70):
        with record(model) as recording:
            held = [recording]
            real(None, None, model.layers[0].attn.weight, _kind_of(model.layers[0]))
            run(numbers())
    assert sites(held[0])[-1] == "Failing"
    assert held[0].result().losses["faults"] == {}


def _kind_of(module: nn.Module) -> int:
    return compiled_layers._kind(module, "attn.weight")


def test_threads_have_their_own() -> None:
    model = seeded(Stack)
    run = compiled(model)
    with record(model) as recording:
        run(numbers())
        threads = [
            threading.Thread(target=lambda: [run(numbers()) for _ in range(50)]) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert Counter(sites(recording)) == dict.fromkeys([*LAYERS, "Stack"], 151)
    spans = recording.result().spans
    steps = dict(zip(spans["span"].tolist(), spans["step"].tolist(), strict=True))
    for step, parent in zip(spans["step"].tolist(), spans["parent"].tolist(), strict=True):
        assert parent < 0 or steps[parent] == step


def test_nothing_of_it_is_in_the_model_or_what_is_made_of_it() -> None:
    model, control = seeded(Stack), seeded(Stack)
    untouched = UnspecializedNNModuleVariable.__dict__["call_function"]
    run = compiled(control)
    run(numbers())
    expected = torch.export.export(control, (numbers(),), strict=True)
    torch._dynamo.reset()
    with record(model):
        compiled(model)(numbers())
        copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert model.state_dict().keys() == control.state_dict().keys()
        exported = torch.export.export(model, (numbers(),), strict=True)
        assert UnspecializedNNModuleVariable.__dict__["call_function"] is not untouched
    assert UnspecializedNNModuleVariable.__dict__["call_function"] is untouched
    for left in (model, copied, pickled):
        assert_untouched(left, control)
    assert str(exported.graph) == str(expected.graph)


def test_outside_a_recorded_call_nothing_is_recorded() -> None:
    """Which no wrapper would put right after an exception."""
    model = seeded(Stack)
    with record(model) as recording:
        torch.compile(lambda x: model(x) + 1, backend="eager")(numbers())
    assert sites(recording) == []


def test_an_exception_of_a_modules_own_at_a_graph_break() -> None:
    model = seeded(Raising)
    with record(model, modules="all") as recording:
        run = torch.compile(model, backend="eager")
        run(numbers())
        with pytest.raises(LookupError, match="from the child"):
            run(numbers(), fail=True)
    assert sites(recording)[-1] == "Raising"


@pytest.mark.parametrize("planted", ["place", "trace"])
def test_a_compiler_that_is_another_is_said(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(Stack)
    if planted == "place":
        from torch._dynamo.variables import nn_module

        monkeypatch.delattr(nn_module, "UnspecializedNNModuleVariable")
    else:
        monkeypatch.setattr(compiled_layers, "trace_call", "no function")
    with record(model) as recording:
        monkeypatch.undo() if planted == "place" else None
        assert torch.equal(compiled(model)(numbers()), seeded(Stack)(numbers()))
    assert sites(recording) == ["Stack"]
    assert "are not recorded" in reasons(recording)
