"""Copies made while a recording runs know nothing of it, and load where there is no pertoken."""

from __future__ import annotations

import copy
import io
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import models
import pertoken
from odd_modules import (
    WIDTH,
    OwnCall,
    OwnState,
    Recursive,
    Shared,
    Stack,
    method_forward,
    numbers,
    partial_forward,
    seeded,
)
from pertoken import instrument
from residue import assert_untouched, foreign_attributes, state_of
from waiting import PATIENCE_S


def through_torch_save(model: Any) -> Any:
    data = io.BytesIO()
    torch.save(model, data)
    data.seek(0)
    return torch.load(data, weights_only=False)


def through_pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def graph_module() -> Any:
    return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()))


MAKERS = [
    Stack,
    Shared,
    Recursive,
    OwnCall,
    OwnState,
    partial_forward,
    method_forward,
    graph_module,
]
COPIERS = [copy.copy, copy.deepcopy, through_pickle, through_torch_save]


@pytest.fixture(params=["call slot", "forward"])
def slot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the wrappers stand; the second is for a torch without the first."""
    if request.param == "forward":
        monkeypatch.setattr(instrument, "has_call_slot", lambda module: False)
    return str(request.param)


def relevant(state: Any) -> Any:
    """Without an empty call slot, which a module with a ``__getstate__`` of its own gives on.

    Wrappers in ``forward`` leave that key in copies, with what the class has there anyway.
    """
    return {
        name: [
            (key, value)
            for key, value in attributes
            if (key, value) != ("_compiled_call_impl", None)
            and not (key == "forward" and isinstance(value, tuple))
        ]
        for name, attributes in state.items()
    }


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("copier", COPIERS)
def test_copies_are_those_of_a_model_that_is_not_recorded(
    slot: str, make: Any, copier: Callable[[Any], Any]
) -> None:
    model, control = seeded(make), seeded(make)
    expected = copier(control)
    if slot == "forward" and make is graph_module and copier in COPIERS[2:]:
        # It is pickled by a reduction of its own, which a forward that refers to it goes round in.
        with pertoken.profile(model), pytest.raises(RecursionError):
            copier(model)
        return
    with pertoken.profile(model, modules="all") as recording:
        copied = copier(model)
        assert foreign_attributes(copied) == [] or copier is copy.copy
        assert "pertoken" not in type(copied.__dict__.get("_compiled_call_impl")).__module__
        output = copied(numbers())
        assert len(recording.result().steps) == 0
        model(numbers())
    assert torch.equal(output, expected(numbers()))
    assert len(recording.result().steps) == 1
    if slot == "call slot" and make is not OwnState:
        assert state_of(copied) == state_of(expected)
    else:
        assert relevant(state_of(copied)) == relevant(state_of(expected))
    control(numbers())
    assert_untouched(model, control)


@pytest.mark.parametrize("copier", COPIERS)
def test_copies_of_a_transformers_model_generate_unseen(
    slot: str, copier: Callable[[Any], Any]
) -> None:
    model = models.llama.__wrapped__()
    expected = model.generate(models.prompt(), max_new_tokens=4)
    with pertoken.profile(model, modules="all") as recording:
        copied = copier(model)
        assert torch.equal(copied.generate(models.prompt(), max_new_tokens=4), expected)
        profile = recording.result()
        assert (len(profile.steps), len(profile.requests)) == (0, 0)
        assert torch.equal(model.generate(models.prompt(), max_new_tokens=4), expected)
    assert len(recording.result().steps) == 4


def test_a_generate_of_the_instances_own_is_copied_without_its_wrapper() -> None:
    model = models.llama.__wrapped__()
    model.generate = model.generate
    with pertoken.profile(model) as recording:
        copies = [copier(model) for copier in COPIERS]
        assert [foreign_attributes(copied) for copied in copies[1:]] == [[], [], []]
        model.generate(models.prompt(), max_new_tokens=2)
        for copied in copies[1:]:
            assert copied.generate.__self__ is copied
            copied.generate(models.prompt(), max_new_tokens=2)
    assert len(recording.result().steps) == 2
    assert model.__dict__["generate"].__self__ is model


def test_replicas_for_data_parallel_run_themselves(slot: str) -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="all") as recording:
        replica = model._replicate_for_data_parallel()
        assert "pertoken" not in type(replica.__dict__.get("forward")).__module__
        assert "_compiled_call_impl" not in replica.__dict__
        replica.forward = lambda x: x
        assert torch.equal(replica(numbers()), numbers())
    assert len(recording.result().steps) == 0


def test_state_dicts_are_the_controls(slot: str, tmp_path: Path) -> None:
    model, control = seeded(Shared), seeded(Shared)
    with pertoken.profile(model, modules="all"):
        held = model.state_dict()
        torch.save(held, tmp_path / "weights.pt")
        control.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        model.load_state_dict(control.state_dict())
    assert list(held) == list(control.state_dict())
    assert_untouched(model, control)


LOAD_WITHOUT_US = """
import sys

class NoPertoken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pertoken":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoPertoken())
sys.path[:0] = [{tests!r}]
import pickle
import torch
from odd_modules import numbers

for path in sys.argv[1:]:
    if path.endswith(".pt"):
        model, expected = torch.load(path, weights_only=False)
    else:
        with open(path, "rb") as file:
            model, expected = pickle.load(file)
    inputs = expected["input"]
    assert torch.equal(expected["output"], getattr(model(inputs), "logits", model(inputs))), path
assert not any(name.partition(".")[0] == "pertoken" for name in sys.modules)
print("loaded", len(sys.argv) - 1)
"""


def test_saved_models_load_where_pertoken_is_not_installed(slot: str, tmp_path: Path) -> None:
    files = []
    for make in [*MAKERS, models.llama.__wrapped__]:
        if slot == "forward" and make is graph_module:
            continue
        model = seeded(make)
        inputs = models.prompt() if hasattr(model, "lm_head") else numbers()
        output = model(inputs)
        expected = {"input": inputs, "output": getattr(output, "logits", output).detach()}
        files += [tmp_path / f"{make.__name__}.pt", tmp_path / f"{make.__name__}.pickle"]
        with pertoken.profile(model, modules="all"):
            torch.save((model, expected), files[-2])
            files[-1].write_bytes(pickle.dumps((model, expected)))
    assert not any(b"_native" in path.read_bytes() for path in files)
    tests = str(Path(__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_US.format(tests=tests), *map(str, files)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert run.stdout == f"loaded {len(files)}\n", run.stderr


def test_a_local_function_as_forward_is_refused_by_pickle_as_without_us() -> None:
    """In the fallback's slot, where the wrapper stands in for it."""
    model = seeded(Stack)
    model.forward = lambda x: x
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(model)
    wrapper = instrument.ForwardCall(model.forward, pertoken.profile(model).recorder, 0)
    with pytest.raises(pickle.PicklingError, match="not found as"):
        pickle.dumps(wrapper)
    assert copy.deepcopy(wrapper) is model.forward
    assert copy.copy(wrapper) is model.forward


def test_models_are_scripted_while_recorded() -> None:
    model, control = seeded(Stack), seeded(Stack)
    with pertoken.profile(model, modules="all") as recording:
        scripted = torch.jit.script(model)
        assert torch.equal(scripted(numbers()), control(numbers()))
        profile = recording.result()
        assert (len(profile.steps), len(profile.spans)) == (0, 0)
        model(numbers())
    expected = torch.jit.script(control)
    assert scripted.code == expected.code
    assert len(recording.result().steps) == 1
    assert_untouched(model, control)


def test_a_scripted_model_is_recorded() -> None:
    scripted, control = torch.jit.script(seeded(Stack)), torch.jit.script(seeded(Stack))
    with pertoken.profile(scripted, modules="all") as recording:
        for _ in range(3):
            output = scripted(numbers())
        data = io.BytesIO()
        torch.jit.save(scripted, data)
    assert torch.equal(output, control(numbers()))
    assert len(recording.result().steps) == 3
    data.seek(0)
    assert torch.equal(torch.jit.load(data)(numbers()), output)
    assert "_compiled_call_impl" not in scripted.__dict__


def test_models_are_traced_while_recorded(slot: str) -> None:
    model, control = seeded(Stack), seeded(Stack)
    with pertoken.profile(model, modules="all"):
        traced = torch.jit.trace(model, numbers())
    expected = torch.jit.trace(control, numbers())
    graphs = [
        re.sub(r"___torch_mangle_\d+\.", "", str(traced_model.inlined_graph))
        for traced_model in (traced, expected)
    ]
    assert graphs[0] == graphs[1]
    assert torch.equal(traced(numbers(2)), control(numbers(2)))
    assert_untouched(model, control)


def test_models_are_traced_by_fx_while_recorded(slot: str) -> None:
    model, control = seeded(Stack), seeded(Stack)
    with pertoken.profile(model, modules="all") as recording:
        traced = torch.fx.symbolic_trace(model)
        output = traced(numbers())
    expected = torch.fx.symbolic_trace(control)
    assert traced.code == expected.code
    assert str(traced.graph) == str(expected.graph)
    assert torch.equal(output, control(numbers()))
    assert len(recording.result().steps) == 0
    assert_untouched(model, control)
