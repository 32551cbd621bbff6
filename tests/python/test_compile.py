"""Compiled models: each step once, and the compiler does what it does without a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters
from transformers import CompileConfig

import invariants
import models
import pertoken
from compiler import compiler_counts, forget_compiled, fresh_compiler
from odd_modules import Block, Stack, numbers, seeded
from pertoken import Profile
from residue import assert_untouched

STACK_SITES = ["layers.0", "layers.0.attn", "layers.0.mlp", "layers.1"]
STACK_SITES += ["layers.1.attn", "layers.1.mlp", "head"]


@pytest.fixture(autouse=True)
def compiles_afresh() -> Iterator[None]:
    with fresh_compiler():
        yield


class Calls:
    """Calls of a model before, during and after a recording, and the compiler's doing in each."""

    def __init__(self, call: Callable[[], Any], count: int = 3) -> None:
        self._call = call
        self._count = count
        self.outputs: list[Any] = []
        self.counts: list[dict[str, Any]] = []

    def phase(self) -> None:
        for _ in range(self._count):
            self.outputs.append(self._call())
        self.counts.append(compiler_counts())

    def assert_equal(self, control: Calls) -> None:
        assert self.counts == control.counts
        assert len(self.outputs) == len(control.outputs)
        for ours, theirs in zip(self.outputs, control.outputs, strict=True):
            assert torch.equal(ours, theirs)


def torch_compile(model: Any, backend: str) -> Any:
    return torch.compile(model, backend=backend, fullgraph=True)


def module_compile(model: Any, backend: str) -> Any:
    model.earlier_note = "set before compile"
    model.compile(backend=backend, fullgraph=True)
    model.note = "set after compile"
    return model


def compile_each_layer(model: Any, backend: str) -> Any:
    for layer in model.layers:
        layer.compile(backend=backend, fullgraph=True)
    return model


def replace_each_layer(model: Any, backend: str) -> Any:
    for index, layer in enumerate(model.layers):
        model.layers[index] = torch.compile(layer, backend=backend, fullgraph=True)
    return model


def compile_each_forward(model: Any, backend: str) -> Any:
    for layer in model.layers:
        layer.forward = torch.compile(layer.forward, backend=backend, fullgraph=True)
    return model


ROOT_WAYS = [torch_compile, module_compile]
LAYER_WAYS = [compile_each_layer, replace_each_layer, compile_each_forward]


def compare(
    way: Callable[[Any, str], Any],
    when: str,
    given: str = "model",
    backend: str = "eager",
    make: Any = Stack,
    inputs: Callable[[], Any] = numbers,
) -> tuple[Profile, list[Any]]:
    """Runs a model and its control through the same calls; asserts that only the first is recorded.

    Returns the profile and what the recording's phases ran as, for further checks.
    """
    held = []
    for recorded in (False, True):
        forget_compiled()
        model = seeded(make)
        compiled = way(model, backend) if when == "before" else None
        calls = Calls(lambda: (model if compiled is None else compiled)(inputs()))  # noqa: B023
        calls.phase()
        recording = None
        if recorded:
            recording = pertoken.profile(compiled if given == "compiled" else model, modules="all")
            recording.start()
        if when == "during":
            compiled = way(model, backend)
        calls.phase()
        if recording is not None:
            recording.stop()
        calls.phase()
        held.append((model, calls, recording))
    (control, expected, _), (model, calls, recording) = held
    calls.assert_equal(expected)
    assert_untouched(model, control)
    profile = recording.result()
    invariants.check_spans(profile)
    assert len(profile.steps) == 3
    return profile, held


@pytest.mark.parametrize("way", ROOT_WAYS)
@pytest.mark.parametrize(
    ("when", "given"), [("before", "model"), ("before", "compiled"), ("during", "model")]
)
def test_a_compiled_root_gives_each_step_once_and_names_what_was_inlined(
    way: Any, when: str, given: str
) -> None:
    profile, held = compare(way, when, given)
    assert profile.spans["site"].tolist() == ["Stack"] * 3
    assert set(STACK_SITES) <= set(profile.losses["inlined_modules"])
    assert "The compiler inlined" in str(profile.summary())
    stats = held[1][1].counts[-1]["stats"]
    assert stats["unique_graphs"] == 1
    assert not held[1][1].counts[-1]["graph_break"]


@pytest.mark.parametrize("way", LAYER_WAYS)
@pytest.mark.parametrize("when", ["before", "during"])
def test_compiled_layers_are_timed_and_what_is_in_them_is_named(way: Any, when: str) -> None:
    profile, _ = compare(way, when)
    sites = profile.spans["site"].tolist()
    for name in ("layers.0", "layers.1", "head", "Stack"):
        assert sites.count(name) == 3
    inner = "._orig_mod" if way is replace_each_layer and when == "before" else ""
    inlined = {f"layers.{i}{inner}.{part}" for i in range(2) for part in ("attn", "mlp")}
    if way is replace_each_layer and when == "during":
        # The module that stands in the layer's place came after the recording had begun.
        inlined = {name.replace("._orig_mod", "") for name in inlined}
    assert inlined <= set(profile.losses["inlined_modules"])
    assert "layers.0" not in profile.losses["inlined_modules"]
    assert "head" not in profile.losses["inlined_modules"]


@pytest.mark.parametrize("way", ROOT_WAYS)
@pytest.mark.parametrize("when", ["before", "during"])
def test_inductor(way: Any, when: str) -> None:
    profile, held = compare(way, when, backend="inductor")
    assert profile.spans["site"].tolist() == ["Stack"] * 3
    assert held[1][1].counts[-1]["stats"]["unique_graphs"] == 1


def test_aot_autograd_with_gradients() -> None:
    with torch.enable_grad():
        profile, _ = compare(torch_compile, "before", backend="aot_eager")
    assert profile.spans["site"].tolist() == ["Stack"] * 3


def ids() -> torch.Tensor:
    return models.prompt(2)


class Logits(nn.Module):
    """A llama that returns logits alone."""

    def __init__(self) -> None:
        super().__init__()
        self.llama = models.llama.__wrapped__()
        self.layers = self.llama.model.layers

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.llama(input_ids, use_cache=False).logits


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("way", [torch_compile, compile_each_layer])
def test_a_transformers_model(way: Any, when: str) -> None:
    profile, held = compare(way, when, make=Logits, inputs=ids)
    assert profile.steps["rows"].tolist() == [2, 2, 2]
    if way is torch_compile:
        assert held[1][1].counts[-1]["stats"]["unique_graphs"] == 1
        assert "llama.lm_head" in profile.losses["inlined_modules"]
    else:
        assert profile.spans["site"].tolist().count("llama.model.layers.0") == 3


def test_torchs_own_containers_are_recorded_by_what_compile_returned() -> None:
    """The compiler traces them without calling them: only the module round them is called."""

    def make() -> nn.Module:
        return nn.Sequential(Block(), Block())

    profile, held = compare(torch_compile, "before", "compiled", make=make)
    assert profile.spans["site"].tolist() == ["Sequential"] * 3
    assert profile.losses["inlined_modules"]
    assert held[1][1].counts[-1]["stats"]["unique_graphs"] == 1


def test_a_graph_break_of_the_models_own_stays_one() -> None:
    class Breaking(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layers[0](x)
            torch._dynamo.graph_break()
            return self.head(self.layers[1](x))

    def way(model: Any, backend: str) -> Any:
        return torch.compile(model, backend=backend)

    profile, held = compare(way, "before", make=Breaking)
    assert sum(held[1][1].counts[-1]["graph_break"].values()) == 1
    assert profile.steps["kind"].tolist() == ["other"] * 3
    assert set(STACK_SITES) <= set(profile.losses["inlined_modules"])


def test_explain_says_the_same_while_recorded() -> None:
    control = torch._dynamo.explain(seeded(Stack))(numbers())
    torch._dynamo.reset()
    model = seeded(Stack)
    with pertoken.profile(model, modules="all"):
        explained = torch._dynamo.explain(model)(numbers())
    assert explained.graph_count == control.graph_count == 1
    assert explained.graph_break_count == control.graph_break_count == 0
    assert explained.op_count == control.op_count


def test_exported_while_recorded() -> None:
    model, control = seeded(Stack), seeded(Stack)
    with pertoken.profile(model, modules="all"):
        exported = torch.export.export(model, (numbers(),))
    expected = torch.export.export(control, (numbers(),))
    assert str(exported.graph) == str(expected.graph)
    assert torch.equal(exported.module()(numbers()), control(numbers()))
    assert_untouched(model, control)


def test_recordings_come_and_go_round_a_compiled_model_without_a_recompile() -> None:
    model = seeded(Stack)
    compiled = torch_compile(model, "eager")
    first, second = (pertoken.profile(model, modules=name) for name in ("all", "layers"))
    for start, stop in ((first, None), (second, None), (None, first), (first, second)):
        if start is not None:
            start.start()
        if stop is not None:
            stop.stop()
        compiled(numbers())
    first.stop()
    compiled(numbers())
    assert counters["stats"]["unique_graphs"] == 1
    assert len(first.result().steps) == 3
    assert len(second.result().steps) == 2
    for recording in (first, second):
        assert recording.result().losses["inlined_modules"]


def test_module_compile_under_two_recordings_that_stop_in_either_order() -> None:
    for order in ((0, 1), (1, 0)):
        torch._dynamo.reset()
        model, control = seeded(Stack), seeded(Stack)
        recordings = [pertoken.profile(model, modules="all") for _ in range(2)]
        for recording in recordings:
            recording.start()
        module_compile(model, "eager")
        model(numbers())
        for index in order:
            recordings[index].stop()
            model(numbers())
        module_compile(control, "eager")
        assert_untouched(model, control)
        assert torch.equal(model(numbers()), control(numbers()))
        counts = [len(recordings[index].result().steps) for index in order]
        assert counts == [1, 2]


def test_nothing_is_said_to_be_inlined_where_nothing_was_compiled() -> None:
    class Unused(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(1, 1)

    model = seeded(Unused)
    with pertoken.profile(model, modules=["unused"]) as recording:
        model(numbers())
    assert recording.result().losses["inlined_modules"] == []


def generate_phases(model: Any, run: Any, **kwargs: Any) -> tuple[Calls, Any]:
    calls = Calls(lambda: run.generate(models.prompt(), max_new_tokens=4, **kwargs), count=2)
    calls.phase()
    with pertoken.profile(model, modules="layers") as recording:
        calls.phase()
    calls.phase()
    return calls, recording


def control_phases(run: Any, **kwargs: Any) -> Calls:
    forget_compiled()
    calls = Calls(lambda: run.generate(models.prompt(), max_new_tokens=4, **kwargs), count=2)
    for _ in range(3):
        calls.phase()
    forget_compiled()
    return calls


def check_generated(profile: Profile) -> None:
    invariants.check(profile)
    assert profile.steps["kind"].tolist() == ["prefill", "decode", "decode", "decode"] * 2
    assert profile.requests["tokens_out"].tolist() == [4, 4]


@pytest.mark.parametrize("given", ["model", "compiled"])
def test_generate_of_what_compile_returned(given: str) -> None:
    control = torch.compile(models.llama.__wrapped__(), backend="eager")
    expected = control_phases(control)
    model = models.llama.__wrapped__()
    compiled = torch.compile(model, backend="eager")
    calls, recording = generate_phases(compiled if given == "compiled" else model, compiled)
    calls.assert_equal(expected)
    check_generated(recording.result())
    assert_untouched(model, control._orig_mod)


def test_generate_of_a_model_that_compiled_itself() -> None:
    control, model = models.llama.__wrapped__(), models.llama.__wrapped__()
    control.compile(backend="eager")
    expected = control_phases(control)
    model.compile(backend="eager")
    calls, recording = generate_phases(model, model)
    calls.assert_equal(expected)
    assert expected.counts[-1]["stats"]["unique_graphs"] >= 1
    profile = recording.result()
    check_generated(profile)
    assert "model.layers.0" in profile.losses["inlined_modules"]
    assert_untouched(model, control)


def test_generates_own_compilation() -> None:
    """As it does by itself with a static cache on a GPU."""
    compile_config = CompileConfig(backend="eager", fullgraph=False)
    compile_config._compile_all_devices = True
    kwargs = {"cache_implementation": "static", "compile_config": compile_config}
    control, model = models.llama.__wrapped__(), models.llama.__wrapped__()
    expected = control_phases(control, **kwargs)
    assert expected.counts[0]["stats"]["unique_graphs"] >= 1
    calls, recording = generate_phases(model, model, **kwargs)
    calls.assert_equal(expected)
    profile = recording.result()
    check_generated(profile)
    assert "model.layers.0" in profile.losses["inlined_modules"]
    assert_untouched(model, control)
