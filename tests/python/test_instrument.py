"""Modules that others have wrapped, hooked or moved are timed, and run as without a recording."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

import invariants
import models
import pertoken
from invariants import parent_sites
from odd_modules import (
    OwnCall,
    Raising,
    Recursive,
    Shared,
    Stack,
    doubled,
    method_forward,
    numbers,
    partial_forward,
    seeded,
)
from pertoken import Profile, instrument
from residue import assert_untouched, foreign_values


@pytest.fixture(params=["call slot", "forward"])
def slot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the wrappers stand; the second is for a torch without the first."""
    if request.param == "forward":
        monkeypatch.setattr(instrument, "has_call_slot", lambda module: False)
    return str(request.param)


def sites(profile: Profile) -> dict[str, int]:
    """How many spans each site has."""
    return dict(Counter(profile.spans["site"].tolist()))


def record(model: Any, calls: int = 1, **kwargs: Any) -> Profile:
    with pertoken.profile(model, modules="all") as recording:
        for _ in range(calls):
            model(numbers(), **kwargs)
    profile = recording.result()
    invariants.check(profile)
    assert len(profile.steps) == calls
    return profile


def test_every_module_is_a_span_inside_its_caller(slot: str) -> None:
    profile = record(seeded(Stack), calls=2)
    block = [(f"layers.{i}.{part}", f"layers.{i}") for i in range(2) for part in ("attn", "mlp")]
    inner = [(f"layers.{i}.mlp.{part}", f"layers.{i}.mlp") for i in range(2) for part in (0, 1)]
    outer = [("layers.0", "Stack"), ("layers.1", "Stack"), ("head", "Stack"), ("Stack", "")]
    assert Counter(parent_sites(profile)) == Counter((block + inner + outer) * 2)


def test_a_module_under_two_names_has_one_site_and_both_calls(slot: str) -> None:
    profile = record(seeded(Shared))
    assert sites(profile)["first"] == 2
    assert "second" not in sites(profile)
    assert sites(profile)["tied"] == 1


def test_recursion_nests(slot: str) -> None:
    profile = record(seeded(Shared))
    assert sites(profile)["inner"] == 3
    assert ("inner", "inner") in parent_sites(profile)


def test_a_root_that_calls_itself_is_one_step(slot: str) -> None:
    profile = record(seeded(Recursive))
    assert parent_sites(profile) == [
        ("step", "Recursive"),
        ("step", "Recursive"),
        ("step", "Recursive"),
        ("Recursive", "Recursive"),
        ("Recursive", "Recursive"),
        ("Recursive", ""),
    ]


def test_own_call_methods_run_and_what_passes_by_the_slot_is_not_seen() -> None:
    model = seeded(OwnCall)
    with pertoken.profile(model, modules="all") as recording:
        output = model(numbers(), scale=3.0)
    assert torch.equal(output, seeded(OwnCall)(numbers(), scale=3.0))
    assert sites(recording.result()) == {"OwnCall": 1}


@pytest.mark.parametrize("make", [partial_forward, method_forward])
def test_own_forwards_are_timed(slot: str, make: Any) -> None:
    model, control = seeded(make), seeded(make)
    profile = record(model)
    assert sites(profile) == sites(record(seeded(Stack)))
    assert torch.equal(model(numbers()), control(numbers()))
    assert_untouched(model, control)


def test_a_forward_set_while_recording_is_used_at_once_and_stays(slot: str) -> None:
    model, control = seeded(Stack), seeded(Stack)

    def set_forward(of: Any) -> None:
        of.head.forward = functools.partial(doubled, of.head)

    with pertoken.profile(model, modules="all") as recording:
        set_forward(model)
        output = model(numbers())
    set_forward(control)
    assert torch.equal(output, control(numbers()))
    assert_untouched(model, control)
    if slot == "call slot":
        assert sites(recording.result())["head"] == 1


class Doubling(ModelHook):
    """An accelerate hook that changes what goes in and out."""

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return tuple(arg * 2 for arg in args), kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output * 2


@pytest.mark.parametrize("hooked", ["before", "during"])
@pytest.mark.parametrize("unhooked", ["never", "during", "after"])
def test_accelerate_hooks(slot: str, hooked: str, unhooked: str) -> None:
    model, control = seeded(Stack), seeded(Stack)

    def hook(of: Any) -> None:
        add_hook_to_module(of, Doubling())
        add_hook_to_module(of.layers[1], Doubling())

    def unhook(of: Any) -> None:
        remove_hook_from_module(of, recurse=True)

    if hooked == "before":
        hook(model)
    with pertoken.profile(model, modules="all") as recording:
        if hooked == "during":
            hook(model)
        outputs = [model(numbers())]
        if unhooked == "during":
            unhook(model)
        outputs.append(model(numbers()))
    if unhooked == "after":
        unhook(model)
    hook(control)
    expected = [control(numbers())]
    if unhooked == "during":
        unhook(control)
    expected.append(control(numbers()))
    if unhooked == "after":
        unhook(control)
    assert all(map(torch.equal, outputs, expected))
    assert foreign_values(model) == []
    assert torch.equal(model(numbers()), control(numbers()))
    if slot == "call slot":
        assert_untouched(model, control)
        assert len(recording.result().steps) == 2


def test_hooks_run_inside_the_span_in_their_order(slot: str) -> None:
    model, control = seeded(Stack), seeded(Stack)

    def add_hooks(of: Any, log: list[Any]) -> Any:
        for module in (of, of.layers[0], of.head):
            name = type(module).__name__
            module.register_forward_pre_hook(lambda m, args, n=name: log.append(("pre", n)))
            module.register_forward_hook(
                lambda m, args, out, n=name: log.append(("post", n, out.sum().item()))
            )
            module.register_full_backward_pre_hook(lambda m, grad, n=name: log.append(("back", n)))
            module.register_full_backward_hook(
                lambda m, grad_in, grad_out, n=name: log.append(("backed", n))
            )

    log: list[Any] = []
    expected: list[Any] = []
    add_hooks(model, log)
    add_hooks(control, expected)
    handles = [
        nn.modules.module.register_module_forward_pre_hook(
            lambda module, args: current.append(("global", type(module).__name__)) or None
        ),
        nn.modules.module.register_module_forward_hook(
            lambda module, args, out: current.append(("after", type(module).__name__)) or None,
            always_call=True,
        ),
    ]
    try:
        current = log
        with pertoken.profile(model, modules="all") as recording:
            model(numbers()).sum().backward()
        current = expected
        control(numbers()).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    assert log == expected
    assert len(log) > 20
    for ours, theirs in zip(model.parameters(), control.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert len(recording.result().steps) == 1
    for ours, theirs in zip(model.modules(), control.modules(), strict=True):
        assert list(ours.__dict__) == list(theirs.__dict__)


def test_hooks_that_are_always_called_see_a_failing_module(slot: str) -> None:
    model = seeded(Raising)
    seen = []
    model.child.register_forward_hook(lambda *args: seen.append(args[-1]), always_call=True)
    with pertoken.profile(model, modules="all") as recording, pytest.raises(LookupError):
        model(numbers(), fail=True)
    assert seen == [None]
    assert sites(recording.result()) == {"child": 1, "Raising": 1}


def test_modes_devices_and_dtypes_change_while_recording(slot: str) -> None:
    model, control = seeded(Stack), seeded(Stack)

    def change(of: Any) -> list[torch.Tensor]:
        outputs = [of.train()(numbers()), of.eval()(numbers())]
        outputs.append(of.double()(numbers().double()))
        outputs.append(of.to(torch.bfloat16)(numbers().bfloat16()))
        of.half().float().to("cpu").requires_grad_(False).share_memory()
        of.zero_grad()
        return [*outputs, of(numbers())]

    with pertoken.profile(model, modules="all") as recording:
        outputs = change(model)
    assert all(map(torch.equal, outputs, change(control)))
    assert len(recording.result().steps) == 5
    assert_untouched(model, control)


def test_parameters_are_swapped_by_functional_call(slot: str) -> None:
    model, control = seeded(Stack), seeded(Stack)
    weights = {name: value * 2 for name, value in control.state_dict().items()}
    with pertoken.profile(model, modules="all") as recording:
        output = torch.func.functional_call(model, weights, (numbers(),))
    assert torch.equal(output, torch.func.functional_call(control, weights, (numbers(),)))
    assert len(recording.result().steps) == 1
    assert_untouched(model, control)


@pytest.mark.parametrize("make", [nn.Transformer, nn.LSTM, nn.MultiheadAttention])
def test_torchs_own_models_run_as_without_us(make: Any) -> None:
    arguments = {nn.Transformer: (8, 2, 1, 1, 16), nn.LSTM: (8, 8), nn.MultiheadAttention: (8, 2)}
    model = seeded(lambda: make(*arguments[make]))
    counts = {nn.Transformer: 2, nn.LSTM: 1, nn.MultiheadAttention: 3}
    inputs = [torch.randn(3, 2, 8)] * counts[make]
    with torch.no_grad():
        expected = model(*inputs)
        with pertoken.profile(model, modules="all") as recording:
            output = model(*inputs)
    output, expected = (x if isinstance(x, torch.Tensor) else x[0] for x in (output, expected))
    assert torch.equal(output, expected)
    assert recording.result().steps["kind"].tolist() == ["other"]


def test_the_fallback_records_generate_as_the_slot_does(monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = []
    for has_slot in (True, False):
        monkeypatch.setattr(instrument, "has_call_slot", lambda module, held=has_slot: held)
        model, control = models.llama.__wrapped__(), models.llama.__wrapped__()
        with pertoken.profile(model, modules="all") as recording:
            ids = model.generate(models.prompt(2), max_new_tokens=4)
        assert torch.equal(ids, control.generate(models.prompt(2), max_new_tokens=4))
        assert_untouched(model, control)
        profiles.append(recording.result())
    for profile in profiles:
        invariants.check(profile)
    assert sites(profiles[0]) == sites(profiles[1])
    assert profiles[0].steps["kind"].tolist() == profiles[1].steps["kind"].tolist()
    assert profiles[0].tokens["position"].tolist() == profiles[1].tokens["position"].tolist()
