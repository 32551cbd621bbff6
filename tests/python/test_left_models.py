"""A recording that runs on may leave its model for a while, and enter it again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import models
import pertoken
from odd_modules import Stack, numbers, seeded
from pertoken.instrument import CALL_SLOT
from pertoken.recording import Recording
from residue import assert_untouched, class_state, foreign_attributes


@pytest.fixture
def model() -> nn.Module:
    return seeded(Stack)


@pytest.fixture
def recording(model: nn.Module) -> Iterator[Recording]:
    with pertoken.profile(model, modules="all") as recording:
        yield recording


def steps_of(recording: Recording) -> int:
    return len(recording.result().steps)


def test_nothing_is_recorded_meanwhile_and_everything_after(
    model: nn.Module, recording: Recording
) -> None:
    expected = model(numbers())
    spans = len(recording.result().spans)
    recording.leave_model()
    assert foreign_attributes(model) == []
    torch.testing.assert_close(model(numbers()), expected, rtol=0, atol=0)
    assert steps_of(recording) == 1
    recording.enter_model()
    model(numbers())
    assert steps_of(recording) == 2
    assert len(recording.result().spans) == 2 * spans


def test_no_class_and_no_attribute_comes_or_goes(model: nn.Module, recording: Recording) -> None:
    # What the interpreter has learned of a class is void once the class changes.
    before = class_state(model), [list(module.__dict__) for module in model.modules()]
    for change in (recording.leave_model, recording.enter_model):
        change()
        assert (class_state(model), [list(each.__dict__) for each in model.modules()]) == before


@pytest.mark.parametrize("enters", [True, False])
def test_a_model_is_as_before_when_the_recording_stops(enters: bool) -> None:
    model, control = seeded(Stack), seeded(Stack)
    with pertoken.profile(model, modules="all") as recording:
        model(numbers())
        recording.leave_model()
        if enters:
            recording.enter_model()
    control(numbers())
    assert_untouched(model, control)


@pytest.mark.parametrize("first_stops_first", [True, False])
def test_recordings_that_leave_and_enter_keep_out_of_each_others_way(
    first_stops_first: bool,
) -> None:
    model, control = seeded(Stack), seeded(Stack)
    first = pertoken.profile(model, modules="all")
    second = pertoken.profile(model, modules="layers")
    first.start()
    first.leave_model()
    second.start()
    model(numbers())  # of the second
    second.leave_model()
    model(numbers())  # of none
    first.enter_model()
    model(numbers())  # of the first
    second.enter_model()
    model(numbers())  # of both
    first.leave_model()
    model(numbers())  # of the second
    first.enter_model()
    model(numbers())  # of both
    ordered = (first, second) if first_stops_first else (second, first)
    ordered[0].leave_model()
    model(numbers())  # of the other
    for recording in ordered:
        recording.stop()
        assert not recording.recorder.active
    control(numbers())
    assert_untouched(model, control)
    assert [steps_of(first), steps_of(second)] == ([3, 5] if first_stops_first else [4, 4])
    for recording in (first, second):
        losses = recording.result().losses
        assert not losses["faults"] and losses["reasons"] == []


def test_what_is_compiled_meanwhile_is_wrapped_after(
    model: nn.Module, recording: Recording
) -> None:
    model(numbers())
    recording.leave_model()
    compiled = 0

    def backend(graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> object:
        nonlocal compiled
        compiled += 1
        return graph.forward

    model.compile(backend=backend)
    model(numbers())
    graphs = compiled
    assert graphs
    recording.enter_model()
    model(numbers())
    assert steps_of(recording) >= 2
    # And a compiled model is left as well.
    before = steps_of(recording)
    recording.leave_model()
    model(numbers())
    assert steps_of(recording) == before


def test_a_generate_meanwhile_is_no_request() -> None:
    model = models.llama()
    prompt = torch.ones((1, 4), dtype=torch.int64)
    with pertoken.profile(model) as recording:
        for _ in range(2):
            model.generate(prompt, max_new_tokens=3)
            recording.leave_model()
            model.generate(prompt, max_new_tokens=3)
            recording.enter_model()
    profile = recording.result()
    assert profile.requests["tokens_out"].tolist() == [3, 3]
    assert len(profile.steps) == 6
    assert CALL_SLOT not in model.__dict__ and "generate" not in model.__dict__
