"""Steps without detail find the wrappers' slots empty, and nobody misses a wrapper for that."""

from __future__ import annotations

import copy
import gc
import random
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import invariants
import pertoken
from odd_modules import Raising, Stack, Unhurried, numbers, seeded
from pertoken.instrument import CALL_SLOT
from pertoken.observing import NOTHING_OBSERVED
from pertoken.recording import Recording
from residue import assert_untouched

NOTHING_TO_SPEND = 1e-9  # steps have detail at the floor: one in some 64, and later fewer
CALLED = 11  # modules of Stack that are called in a step, besides the root


@pytest.fixture(autouse=True)
def no_compiler() -> Iterator[None]:
    """Nothing counts as compiled before the test; other tests of the process compile."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    before = {} if dynamo is None else dict(dynamo.counters)
    if dynamo is not None:
        torch._dynamo.reset()  # code of modules that these tests use, too
        dynamo.counters.clear()
    yield
    if dynamo is not None:
        dynamo.counters.update(before)


def filled(model: nn.Module) -> int:
    """How many modules of a model, besides it, have something in their slot."""
    return sum(module.__dict__.get(CALL_SLOT) is not None for module in list(model.modules())[1:])


def until_out(model: nn.Module, recording: Recording) -> None:
    """Runs steps until the last ones had no detail."""
    for _ in range(10_000):
        model(numbers())
        if filled(model) == 0:
            return
    raise AssertionError(f"some slots stay filled: {recording.status()}")


def complete(profile: pertoken.Profile, called: int = CALLED) -> Counter[str]:
    """Asserts that each step has all the spans of its detail, or none; how many have which."""
    spans = Counter(profile.spans["step"].tolist())
    steps, details = profile.steps["step"].tolist(), profile.steps["detail"].tolist()
    for step, detail in zip(steps, details, strict=True):
        assert spans[step] == {"root": 1, "all": 1 + called}.get(detail, spans[step])
    return Counter(details)


def test_slots_are_empty_in_steps_without_detail_and_filled_in_others() -> None:
    model, control = seeded(Unhurried), seeded(Unhurried)
    seen: list[int] = []
    model.head.register_forward_pre_hook(lambda module, args: seen.append(filled(model)))
    control.head.register_forward_pre_hook(lambda module, args: None)
    with pertoken.profile(model, modules="all", budget=1.0) as recording:
        for _ in range(600):
            model(numbers())
    control(numbers())
    profile = recording.result()
    found = complete(profile)
    assert found["all"] > 10 and found["root"] > 10
    by_detail: dict[str, set[int]] = {"all": set(), "root": set()}
    for detail, count in zip(profile.steps["detail"].tolist(), seen, strict=True):
        by_detail.setdefault(detail, set()).add(count)
    assert by_detail["all"] == {CALLED} and by_detail["root"] == {0}
    model.head._forward_pre_hooks.clear()
    control.head._forward_pre_hooks.clear()
    assert_untouched(model, control)
    invariants.check(profile)


def test_what_moves_is_counted_and_calls_are_passed_on_once() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="all", budget=NOTHING_TO_SPEND) as recording:
        until_out(model, recording)
        for _ in range(500):
            model(numbers())
        recording.recorder.drain()
        (row,) = recording.recorder.sampling()["strata"].values()
    detailed = sum(row["details"][0]["detailed"])
    assert row["steps"] > 500 and detailed < row["steps"] / 2
    # Those that had left a slot once are moved by the root, out and back, for each step with
    # detail; layers and all modules are put back apart.
    assert row["passed_on"] <= CALLED * (detailed + 1)
    assert CALLED <= row["moved"] <= CALLED * (2 * detailed + 1)
    # How long that took was measured, and is part of what spans cost.
    assert 0 < row["moved_ns"] <= row["details"][0]["detail_ns"]


def test_wrappers_that_have_stepped_aside_are_moved_at_once_after_the_model_was_left() -> None:
    model = seeded(Stack)

    def passed_on() -> int:
        recording.recorder.drain()
        (row,) = recording.recorder.sampling()["strata"].values()
        return int(row["passed_on"])

    with pertoken.profile(model, modules="all", budget=NOTHING_TO_SPEND) as recording:
        until_out(model, recording)
        before = passed_on()
        for _ in range(50):
            recording.leave_model()
            model(numbers())
            recording.enter_model()
            model(numbers())
        assert passed_on() == before
    complete(recording.result())
    assert filled(model) == 0


def test_a_step_that_raises_is_over_for_the_slots_too() -> None:
    model = seeded(Raising)
    with pertoken.profile(model, modules="all", budget=NOTHING_TO_SPEND) as recording:
        for _ in range(50):
            with pytest.raises(LookupError):
                model(numbers(), fail=True)
            until_out(model, recording)


def test_a_module_that_is_called_outside_steps_keeps_its_wrapper() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="all", budget=NOTHING_TO_SPEND) as recording:
        for _ in range(500):
            model.head(numbers())
            model(numbers())
    profile = recording.result()
    outside = profile.spans["step"] == -1
    assert outside.sum() == 500
    invariants.check(profile)


def test_recordings_that_come_and_go_meanwhile_see_every_step_whole() -> None:
    model, control = seeded(Stack), seeded(Stack)
    with pertoken.profile(model, modules="all", budget=NOTHING_TO_SPEND) as first:
        until_out(model, first)
        with pertoken.profile(model, modules="all") as second:
            for _ in range(100):
                model(numbers())
            assert filled(model) == CALLED
        assert complete(second.result()) == {"all": 100}
        until_out(model, first)
        second.start()
        for _ in range(10):
            model(numbers())
        first.stop()
        for _ in range(10):
            model(numbers())
        second.stop()
    control(numbers())
    assert complete(second.result()) == {"all": 120}
    complete(first.result())
    assert_untouched(model, control)


def test_copies_that_are_made_meanwhile_know_nothing() -> None:
    model, control = seeded(Stack), seeded(Stack)
    with pertoken.profile(model, modules="all", budget=NOTHING_TO_SPEND) as recording:
        until_out(model, recording)
        copies = [copy.deepcopy(model), copy.copy(model)]
        replicas = [module._replicate_for_data_parallel() for module in model.modules()]
        until_out(model, recording)
    expected = [copy.deepcopy(control), copy.copy(control)]
    for copied, wanted in zip(copies, expected, strict=True):
        assert_untouched(copied, wanted)
    assert not any(CALL_SLOT in replica.__dict__ for replica in replicas)


def test_what_somebody_writes_into_an_empty_slot_is_called_and_stays() -> None:
    model = seeded(Stack)
    own: list[Any] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        own.append(args)
        return model.head._call_impl(*args, **kwargs)

    with pertoken.profile(model, modules="all", budget=NOTHING_TO_SPEND) as recording:
        until_out(model, recording)
        model.head._compiled_call_impl = call
        for _ in range(300):
            model(numbers())
    assert len(own) == 300
    assert model.head.__dict__[CALL_SLOT] is call
    assert any("head" in reason for reason in recording.result().losses["reasons"])


def test_a_module_compiled_meanwhile_keeps_its_wrapper() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="all", budget=NOTHING_TO_SPEND) as recording:
        until_out(model, recording)
        model.head.compile(backend="eager")
        wrapper = model.head.__dict__[CALL_SLOT]
        for _ in range(300):
            model(numbers())
        assert model.head.__dict__[CALL_SLOT] is wrapper
        recording.recorder.drain()
        (row,) = recording.recorder.sampling()["strata"].values()
        assert row["passed_on"] >= 200
    complete(recording.result())
    assert model.head.__dict__[CALL_SLOT] is wrapper.inner


def test_once_the_compiler_is_in_use_wrappers_stay() -> None:
    """Its guards look at the dicts of modules, and a change of one makes the next check slow."""
    model = seeded(Stack)
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    with pertoken.profile(model, modules="all", budget=NOTHING_TO_SPEND) as recording:
        until_out(model, recording)
        compiled(numbers())
        for _ in range(10_000):
            model(numbers())
            if filled(model):
                break
        for _ in range(200):
            model(numbers())
            assert filled(model) == CALLED
    complete(recording.result())


def test_a_model_that_is_dropped_goes_at_once() -> None:
    model = seeded(Stack)
    recording = Recording(
        model,
        modules="all",
        memory_limit_bytes=1 << 24,
        budget=NOTHING_TO_SPEND,
        holds_model=False,
        observed=NOTHING_OBSERVED,
    )
    recording.start()
    until_out(model, recording)
    gone = [weakref.ref(module) for module in model.modules()]
    gc.disable()
    try:
        del model
        assert not any(ref() for ref in gone)
    finally:
        gc.enable()
    recording.stop()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_miss_no_span_whatever_else_happens(threads: int) -> None:
    """Steps of some threads, with detail and without, and all that changes a model meanwhile."""
    model, control = seeded(Stack), seeded(Stack)
    raising = seeded(Raising)
    done = threading.Event()
    errors: list[BaseException] = []
    draw = random.Random(5)

    def run() -> None:
        try:
            for _ in range(1500):
                model(numbers())
        except BaseException as error:
            errors.append(error)

    def disturb() -> None:
        while not done.is_set():
            act = draw.randrange(3)
            if act == 0:
                copy.deepcopy(model)
            elif act == 1:
                with pertoken.profile(model, modules="all"):
                    pass
            else:
                with pertoken.profile(raising, budget=0.5):
                    raising(numbers())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with pertoken.profile(model, modules="all", budget=0.03) as recording:
            running = [threading.Thread(target=run) for _ in range(threads)]
            disturbing = threading.Thread(target=disturb)
            for thread in (*running, disturbing):
                thread.start()
            for thread in running:
                thread.join()
            done.set()
            disturbing.join()
            until_out(model, recording)
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    profile = recording.result()
    found = complete(profile)
    assert found["all"] > 0 and found["root"] > 0
    control(numbers())
    assert_untouched(model, control)
    invariants.check(profile)
