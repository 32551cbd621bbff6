"""Models round a model that generates, as adapters make them: steps are seen wherever they run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import invariants
import models
import pertoken
from pertoken import Profile
from residue import assert_untouched, class_state

NEW_TOKENS = 4


class Tuner(nn.Module):
    """Calls the forward of the model inside directly, and hands on what it has not itself."""

    def __init__(self) -> None:
        super().__init__()
        self.model = models.llama.__wrapped__()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.forward(*args, **kwargs)


class Adapted(nn.Module):
    """Has a generate that has the model inside generate; its own forward does not run then."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model = Tuner()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model.generate(*args, **kwargs)


class Twice(Adapted):
    """Generates in two calls."""

    def generate(self, ids: Any, **kwargs: Any) -> Any:
        return super().generate(super().generate(ids, **kwargs), **kwargs)


class OwnLoop(nn.Module):
    """Generates by a loop of its own round the model inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = models.llama.__wrapped__()

    def generate(self, ids: Any, max_new_tokens: int) -> Any:
        for _ in range(max_new_tokens):
            logits = self.inner(ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        return ids


class TwoModels(nn.Module):
    """Two models that generate, the second for what the first has made, and one plain call."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = models.llama.__wrapped__()
        self.fine = models.llama.__wrapped__(seed=1)

    def generate(self, ids: Any, **kwargs: Any) -> Any:
        self.fine(ids)
        return self.fine.generate(self.coarse.generate(ids, **kwargs), **kwargs)


def record_generate(model: Any, modules: str = "root") -> Profile:
    with pertoken.profile(model, modules=modules) as recording:
        model.generate(models.prompt(2), max_new_tokens=NEW_TOKENS)
    profile = recording.result()
    invariants.check(profile)
    return profile


def columns(profile: Profile, table: str, *names: str) -> list[Any]:
    return [getattr(profile, table)[name].tolist() for name in names]


@pytest.mark.parametrize("make", [Adapted, Tuner])
@pytest.mark.parametrize("modules", ["root", "layers", "all"])
def test_a_wrapper_gives_what_the_model_inside_gives(make: Any, modules: str) -> None:
    model, control = make(), make()
    classes = class_state(model)
    profile = record_generate(model, modules)
    expected = record_generate(models.llama.__wrapped__(), modules)
    steps = ("kind", "rows", "tokens_in", "context_len", "tokens_committed", "request")
    assert columns(profile, "steps", *steps) == columns(expected, "steps", *steps)
    requests = ("tokens_in", "tokens_out", "rows")
    assert columns(profile, "requests", *requests) == columns(expected, "requests", *requests)
    assert columns(profile, "tokens", "position") == columns(expected, "tokens", "position")
    assert len(profile.tokens) == 2 * NEW_TOKENS
    control.generate(models.prompt(2), max_new_tokens=NEW_TOKENS)
    assert_untouched(model, control)
    assert class_state(model) == classes


def test_calls_of_a_wrapper_and_of_the_model_inside_are_one_step_each() -> None:
    model = Adapted()
    with pertoken.profile(model, modules="all") as recording:
        model(models.prompt(), use_cache=True)
        model.base_model.model(models.prompt(), use_cache=True)
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["kind"].tolist() == ["prefill", "prefill"]
    outermost = profile.spans["site"][profile.spans["parent"] == -1]
    assert outermost.tolist() == ["Adapted", "base_model.model"]


def test_a_model_inside_is_a_span_of_the_outer_step_only_where_it_is_selected() -> None:
    class Calling(Tuner):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.model(*args, **kwargs)

    for modules, sites in (("root", ["Calling"]), (["model"], ["model", "Calling"])):
        model = Calling()
        with pertoken.profile(model, modules=modules) as recording:
            model(models.prompt())
        profile = recording.result()
        assert len(profile.steps) == 1
        assert profile.spans["site"].tolist() == sites


def test_two_calls_inside_one_generate_are_one_request() -> None:
    profile = record_generate(Twice())
    assert profile.steps["kind"].tolist() == (["prefill"] + ["decode"] * (NEW_TOKENS - 1)) * 2
    assert profile.steps["request"].tolist() == [0] * (2 * NEW_TOKENS)
    assert profile.requests["tokens_out"].tolist() == [2 * 2 * NEW_TOKENS]


def test_a_loop_of_the_wrappers_own_round_the_model_inside_has_its_steps() -> None:
    model, control = OwnLoop(), OwnLoop()
    profile = record_generate(model)
    assert profile.steps["rows"].tolist() == [2] * NEW_TOKENS
    assert profile.steps["tokens_in"].tolist() == [14, 16, 18, 20]
    assert profile.steps["request"].tolist() == [0] * NEW_TOKENS
    control.generate(models.prompt(2), max_new_tokens=NEW_TOKENS)
    assert_untouched(model, control)


def test_of_two_models_inside_each_has_the_steps_of_its_own_generate() -> None:
    profile = record_generate(TwoModels())
    assert profile.steps["kind"].tolist() == (["prefill"] + ["decode"] * (NEW_TOKENS - 1)) * 2
    step_spans = profile.spans["site"][profile.spans["step"] >= 0]
    models_run = [site for site in step_spans.tolist() if "outside" not in site]
    assert models_run == ["coarse"] * NEW_TOKENS + ["fine"] * NEW_TOKENS
    assert profile.requests["tokens_out"].tolist() == [2 * 2 * NEW_TOKENS]


def test_recordings_of_a_wrapper_and_of_the_model_inside_agree() -> None:
    model = Adapted()
    inner = model.base_model.model
    with pertoken.profile(model) as outer_recording, pertoken.profile(inner) as inner_recording:
        model.generate(models.prompt(2), max_new_tokens=NEW_TOKENS)
    outer, own = outer_recording.result(), inner_recording.result()
    assert columns(outer, "steps", "kind", "rows") == columns(own, "steps", "kind", "rows")
    assert len(own.requests) == len(outer.requests) == 1
