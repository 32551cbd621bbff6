"""After a recording the model is as one that made the same calls without it."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import invariants
import models
import pertoken
from odd_modules import (
    OwnCall,
    OwnState,
    Raising,
    Recursive,
    Shared,
    Stack,
    method_forward,
    numbers,
    partial_forward,
    seeded,
)
from pertoken import patch
from residue import assert_untouched, class_state, foreign_values

PLAIN = [Stack, Shared, Recursive, OwnCall, OwnState, partial_forward, method_forward]


def fresh_llama() -> Any:
    return models.llama.__wrapped__()


@pytest.mark.parametrize("make", PLAIN)
@pytest.mark.parametrize("modules", ["root", "layers", "all"])
def test_attributes_and_outputs_equal_the_controls(make: Any, modules: str) -> None:
    model, control = seeded(make), seeded(make)
    classes = class_state(model)
    with pertoken.profile(model, modules=modules) as recording:
        recorded = [model(numbers()) for _ in range(3)]
    expected = [control(numbers()) for _ in range(3)]
    assert all(map(torch.equal, recorded, expected))
    assert len(recording.result().steps) == 3
    assert_untouched(model, control)
    assert class_state(model) == classes


@pytest.mark.parametrize("modules", ["root", "layers", "all"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_generate_leaves_the_controls_attributes_output_and_random_state(
    modules: str, do_sample: bool
) -> None:
    model, control = fresh_llama(), fresh_llama()
    classes = class_state(model)

    def generate(of: Any) -> tuple[Any, Any]:
        torch.manual_seed(3)
        result = of.generate(models.prompt(2), max_new_tokens=5, do_sample=do_sample)
        return result, torch.get_rng_state()

    with pertoken.profile(model, modules=modules):
        ids, random_state = generate(model)
    expected_ids, expected_state = generate(control)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(random_state, expected_state)
    assert_untouched(model, control)
    assert class_state(model) == classes


def test_exceptions_in_the_body_pass_through_and_leave_nothing() -> None:
    model, control = seeded(Raising), seeded(Raising)
    recording = pertoken.profile(model, modules="all")
    error = KeyError("of the user")
    with pytest.raises(KeyError) as caught, recording:
        model(numbers())
        raise error
    assert caught.value is error
    control(numbers())
    assert_untouched(model, control)


def test_exceptions_of_a_module_close_their_spans_and_leave_nothing() -> None:
    model, control = seeded(Raising), seeded(Raising)
    with pertoken.profile(model, modules="all") as recording:
        with pytest.raises(LookupError, match="from the child") as caught:
            model(numbers(), fail=True)
        model(numbers())
    with pytest.raises(LookupError) as expected:
        control(numbers(), fail=True)
    assert [entry.name for entry in caught.traceback][1:] == [
        entry.name for entry in expected.traceback
    ][1:]
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["error"].tolist() == ["exception", ""]
    assert profile.spans["site"][profile.spans["step"] == 0].tolist() == ["child", "Raising"]
    assert_untouched(model, control)


def test_an_exception_inside_generate_ends_its_request_and_leaves_nothing() -> None:
    model, control = fresh_llama(), fresh_llama()

    def fail(ids: Any, scores: Any, **kwargs: Any) -> Any:
        if ids.shape[1] > 9:
            raise BufferError("stop here")
        return torch.zeros(ids.shape[0], dtype=torch.bool)

    with pertoken.profile(model) as recording, pytest.raises(BufferError, match="stop here"):
        model.generate(models.prompt(), max_new_tokens=9, stopping_criteria=[fail])
    with pytest.raises(BufferError):
        control.generate(models.prompt(), max_new_tokens=9, stopping_criteria=[fail])
    profile = recording.result()
    invariants.check(profile)
    assert profile.requests["error"].tolist() == ["BufferError"]
    assert len(profile.steps) == 3
    assert_untouched(model, control)


@pytest.mark.parametrize(
    "order", [*itertools.permutations(range(2)), *itertools.permutations(range(3))]
)
def test_recordings_on_one_model_stop_in_any_order(order: tuple[int, ...]) -> None:
    model, control = fresh_llama(), fresh_llama()
    classes = class_state(model)
    selections = ["all", "layers", "root"]
    recordings = [pertoken.profile(model, modules=selections[i]) for i in range(len(order))]
    for recording in recordings:
        recording.start()
    model.generate(models.prompt(), max_new_tokens=2)
    for index in order:
        recordings[index].stop()
        model.generate(models.prompt(), max_new_tokens=2)
    for index in range(len(order)):
        profile = recordings[index].result()
        invariants.check(profile)
        assert profile.steps["kind"].tolist() == ["prefill", "decode"] * (1 + order.index(index))
        assert len(profile.requests) == 1 + order.index(index)
    for _ in range(1 + len(order)):
        control.generate(models.prompt(), max_new_tokens=2)
    assert_untouched(model, control)
    assert class_state(model) == classes


def test_nested_entries_stop_at_the_outermost_exit() -> None:
    model, control = seeded(Stack), seeded(Stack)
    recording = pertoken.profile(model)
    with recording:
        with recording:
            model(numbers())
        assert recording.is_recording
        model(numbers())
    assert not recording.is_recording
    assert len(recording.result().steps) == 2
    control(numbers())
    assert_untouched(model, control)


def test_start_stop_start_goes_on_numbering_steps() -> None:
    model = seeded(Stack)
    recording = pertoken.profile(model, modules="all")
    for _ in range(3):
        recording.start()
        recording.start()
        model(numbers())
        recording.stop()
        recording.stop()
        assert foreign_values(model) == []
        model(numbers())
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["step"].tolist() == [0, 1, 2]
    assert len(profile.tracks) == 1


def test_a_recording_sees_modules_that_were_added_before_it_started_again() -> None:
    model = seeded(Stack)
    recording = pertoken.profile(model, modules="all")
    with recording:
        model(numbers())
    model.head = nn.Sequential(model.head, nn.Linear(2, 2))
    with recording:
        model(numbers())
    assert "head.1" in recording.result().spans["site"].tolist()


def test_a_recording_that_nobody_holds_stops_and_frees_its_slot() -> None:
    model, control = seeded(Stack), seeded(Stack)
    for _ in range(3 * pertoken.recording._native.MAX_RECORDERS):
        pertoken.profile(model).start()
        assert foreign_values(model) == []
    kept = pertoken.profile(model)
    kept.start()
    assert foreign_values(model) != []
    del kept
    assert_untouched(model, control)


def test_dropping_a_stopped_recording_leaves_the_one_that_runs_alone() -> None:
    model = seeded(Stack)
    stopped = pertoken.profile(model, modules="all")
    with stopped:
        model(numbers())
    with pertoken.profile(model, modules="all") as recording:
        del stopped
        gc.collect()
        with pertoken.request(id="by hand"):
            model(numbers())
    profile = recording.result()
    assert profile.requests["id"].tolist() == ["by hand"]
    assert len(profile.spans) == 12


def test_recordings_in_cycles_give_their_room_to_others() -> None:
    model = seeded(Stack)
    for _ in range(3 * pertoken.recording._native.MAX_RECORDERS):
        cycle: list[Any] = [pertoken.profile(model)]
        cycle.append(cycle)
        cycle[0].start()
    del cycle
    gc.collect()
    assert foreign_values(model) == []


def test_a_model_and_its_running_recording_are_collected_together() -> None:
    model = fresh_llama()
    recording = pertoken.profile(model, modules="all")
    recording.start()
    model.generate(models.prompt(), max_new_tokens=2)
    gone = weakref.ref(model), weakref.ref(model.model.layers[0])
    del model
    gc.collect()
    assert gone[0]() is recording.model is not None
    del recording
    gc.collect()
    assert [held() for held in gone] == [None, None]


def test_a_stopped_recording_does_not_hold_the_model() -> None:
    model = fresh_llama()
    with pertoken.profile(model, modules="all") as recording:
        model.generate(models.prompt(), max_new_tokens=2)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and recording.model is None
    profile = recording.result()
    assert len(profile.steps) == 2
    assert profile.meta["model"]["class"] == "LlamaForCausalLM"
    assert "LlamaForCausalLM" in repr(recording)
    with pytest.raises(pertoken.RecordingStateError, match="does not exist"):
        recording.start()


def test_a_model_made_for_the_recording_lives_while_it_runs() -> None:
    with pertoken.profile(seeded(Stack)) as recording:
        gc.collect()
        assert recording.model is not None
        recording.model(numbers())
    assert len(recording.result().steps) == 1


def test_a_start_that_fails_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh_llama()
    classes = class_state(model)
    recording = pertoken.profile(model, modules="all")

    def fail(*args: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(recording.instrumentation, "_hook_class", fail)
        with pytest.raises(MemoryError), recording:
            pass
    assert foreign_values(model) == []
    assert class_state(model) == classes
    assert not recording.is_recording
    with recording:
        model(models.prompt())
    assert len(recording.result().steps) == 1


def test_a_recording_dropped_in_the_middle_of_a_change_goes_after_it() -> None:
    model = seeded(Stack)
    dropped, kept = pertoken.profile(model), pertoken.profile(model)
    dropped.start()
    with patch.change_lock:
        del dropped
        gc.collect()
        assert foreign_values(model) != []
        kept.start()
    model(numbers())
    assert len(kept.result().steps) == 1
    kept.stop()
    assert foreign_values(model) == []


def test_somebody_elses_wrapper_stays_and_is_told() -> None:
    """As the slot's next user would do it: replace what is there and pass on to it."""
    model = seeded(Stack)
    head = model.head
    with pertoken.profile(model, modules="all") as recording:
        ours: Callable[..., Any] = head.__dict__["_compiled_call_impl"]
        calls = []

        def theirs(*args: Any) -> Any:
            calls.append(args)
            return ours(*args)

        head._compiled_call_impl = theirs
        model(numbers())
    assert head.__dict__["_compiled_call_impl"] is theirs
    expected = seeded(Stack)(numbers())
    assert torch.equal(model(numbers()), expected)
    assert len(calls) == 2
    profile = recording.result()
    assert len(profile.steps) == 1
    assert any("head" in reason for reason in profile.losses["reasons"])


def test_a_slot_that_somebody_empties_stays_empty() -> None:
    model, control = seeded(Stack), seeded(Stack)
    with pertoken.profile(model, modules="all"):
        del model.head._compiled_call_impl
        model(numbers())
    assert_untouched(model, control)
