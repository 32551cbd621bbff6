"""Exceptions that leave generate, and results taken while it runs."""

from __future__ import annotations

import itertools
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria

import invariants
import pertoken
from models import PAD, llama, prompt, t5
from pertoken import Profile


class Trouble(Exception):
    """What a user's own code raises."""


class AtTurn(StoppingCriteria):
    """Calls a function at one turn of generate's loop, once the turn's token is there."""

    def __init__(self, turn: int, act: Callable[[], Any]) -> None:
        self.turn, self.act, self.turns = turn, act, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.turns += 1
        if self.turns == self.turn:
            self.act()
        return input_ids.new_zeros(input_ids.shape[0]).bool()


class ProcessorAtTurn(LogitsProcessor):
    """The same, before the turn's token is chosen."""

    def __init__(self, turn: int, act: Callable[[], Any]) -> None:
        self.turn, self.act, self.turns = turn, act, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.turns += 1
        if self.turns == self.turn:
            self.act()
        return scores


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def frames(error: BaseException) -> list[tuple[str, str]]:
    return [(frame.filename, frame.name) for frame in traceback.extract_tb(error.__traceback__)[1:]]


@pytest.mark.parametrize("modules", ["root", "all"])
def test_an_exception_passes_as_it_is_and_ends_the_request(modules: str) -> None:
    model = llama()
    error = Trouble("mine", 7)

    def run() -> None:
        model.generate(prompt(2), max_new_tokens=8, stopping_criteria=[AtTurn(3, raising(error))])

    with pytest.raises(Trouble) as plain:
        run()
    frames_without = frames(plain.value)
    error.__traceback__ = None
    recording = pertoken.profile(model, modules=modules)
    with recording:
        with pytest.raises(Trouble) as caught:
            run()
        model.generate(prompt(1), max_new_tokens=2)
    assert caught.value is error
    assert error.args == ("mine", 7)
    assert error.__cause__ is None and error.__context__ is None
    assert frames(error) == frames_without
    profile = recording.result()
    invariants.check(profile)
    invariants.check_tiled(profile, "LlamaForCausalLM")
    assert profile.requests["error"].tolist() == ["Trouble", ""]
    assert (profile.requests["end_ns"] > profile.requests["start_ns"]).all()
    assert profile.steps["kind"].tolist() == ["prefill", "decode", "decode", "prefill", "decode"]
    assert profile.steps["error"].tolist() == [""] * 5
    # Whether the last turn's tokens came about before it broke off is unknown.
    assert profile.steps["tokens_committed"].tolist() == [2, 2, -1, 1, 1]
    assert profile.requests["tokens_out"].tolist() == [-1, 2]


def test_an_exception_inside_the_forward_leaves_what_was_committed_known() -> None:
    model = llama()
    error = Trouble("inside")
    calls = 0

    def hook(module: Any, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error

    handle = model.model.layers[1].register_forward_pre_hook(hook)
    recording = pertoken.profile(model, modules="all")
    try:
        with recording, pytest.raises(Trouble) as caught:
            model.generate(prompt(2), max_new_tokens=8)
    finally:
        handle.remove()
    assert caught.value is error
    profile = recording.result()
    invariants.check(profile)
    invariants.check_tiled(profile, "LlamaForCausalLM")
    assert profile.steps["error"].tolist() == ["", "", "exception"]
    assert profile.steps["tokens_committed"].tolist() == [2, 2, 0]
    assert profile.requests["tokens_out"].tolist() == [4]
    assert profile.requests["error"].tolist() == ["Trouble"]
    # The spans that were open are closed: the layer that failed and all that is round it.
    failed = profile.spans.where(profile.spans["step"] == 2)
    assert {"LlamaForCausalLM", "model", "model.layers.1"} <= set(failed["site"].tolist())


def test_an_exception_before_the_first_token_leaves_no_time_to_it() -> None:
    model = t5()
    handle = model.encoder.block[1].register_forward_pre_hook(
        lambda module, args: raising(Trouble())()
    )
    recording = pertoken.profile(model)
    try:
        with recording, pytest.raises(Trouble):
            model.generate(prompt(1, 5), max_new_tokens=3)
    finally:
        handle.remove()
    profile = recording.result()
    invariants.check(profile)
    assert len(profile.steps) == 0
    assert profile.requests["ttft_ns"].tolist() == [-1]
    assert profile.requests["tokens_out"].tolist() == [-1]
    assert profile.requests["error"].tolist() == ["Trouble"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_interrupts_pass_too(error: BaseException) -> None:
    recording = pertoken.profile(llama())
    with recording, pytest.raises(type(error)) as caught:
        llama().generate(
            prompt(), max_new_tokens=4, logits_processor=[ProcessorAtTurn(2, raising(error))]
        )
    assert caught.value is error
    profile = recording.result()
    invariants.check(profile)
    assert profile.requests["error"].tolist() == [type(error).__name__]
    assert profile.steps["tokens_committed"].tolist() == [1, -1]


class AskedInVain:
    """A cache that meets an exception when its length is asked for, as a signal's handler may."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def get_seq_length(self) -> int:
        raise self._error


class Busy(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None) -> torch.Tensor:
        for _ in range(1000):
            input_ids = input_ids + 0
        return input_ids


@pytest.fixture(params=["SIGINT raises", "SIGINT is ignored"])
def sigint(request: pytest.FixtureRequest) -> Iterator[None]:
    is_ignored = request.param == "SIGINT is ignored"
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN if is_ignored else signal.default_int_handler
    )
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupt_while_the_cache_is_asked_is_the_users(error: BaseException) -> None:
    """It hits code that only the recording runs, and must not be swallowed there."""
    model = Busy()
    recording = pertoken.profile(model)
    with recording, pytest.raises(type(error)) as caught:
        model(prompt(), past_key_values=AskedInVain(error))
    assert caught.value is error
    assert recording.result().steps["context_len"].tolist() == [-1]


def test_an_exit_while_the_cache_is_asked_stays_in_its_thread() -> None:
    model = Busy()
    ended: list[str] = []

    def serve() -> None:
        try:
            model(prompt(), past_key_values=AskedInVain(SystemExit(3)))
            for _ in range(30_000):
                time.sleep(0.001)
        except SystemExit:
            ended.append("by the exit")

    with pertoken.profile(model):
        server = threading.Thread(target=serve)
        server.start()
        server.join()
    assert ended == ["by the exit"]


def test_bad_arguments_are_refused_as_without_a_recording() -> None:
    with pytest.raises(ValueError) as plain:
        llama().generate(prompt(), max_new_tokens=2, nonsense=1)
    recording = pertoken.profile(llama())
    with recording, pytest.raises(ValueError) as caught:
        llama().generate(prompt(), max_new_tokens=2, nonsense=1)
    assert caught.value.args == plain.value.args
    assert recording.result().requests["error"].tolist() == ["ValueError"]
    assert recording.result().losses["faults"] == {}


def result_at(turn: int, **kwargs: Any) -> tuple[Profile, Profile]:
    """A result from inside generate, at the end of a turn, and the one after it."""
    recording = pertoken.profile(llama())
    taken: list[Profile] = []
    with recording:
        llama().generate(
            max_new_tokens=6,
            stopping_criteria=[AtTurn(turn, lambda: taken.append(recording.result()))],
            **kwargs,
        )
    after = recording.result()
    for profile in (taken[0], after):
        invariants.check_tokens(profile)
        invariants.check_steps(profile)
    return taken[0], after


def assert_is_the_beginning(early: Profile, late: Profile) -> None:
    """What the early result knows is what the late one says."""
    count = len(early.steps)
    for name in ("step", "kind", "rows", "tokens_in", "context_len", "request"):
        assert early.steps[name].tolist() == late.steps[name][:count].tolist()
    known = early.steps["tokens_committed"] >= 0
    late_committed = late.steps["tokens_committed"][:count]
    assert early.steps["tokens_committed"][known].tolist() == late_committed[known].tolist()


def test_a_result_from_inside_a_generation_is_its_beginning() -> None:
    early, late = result_at(3, inputs=prompt())
    assert_is_the_beginning(early, late)
    assert early.steps["tokens_committed"].tolist() == [1, 1, 1]
    assert early.requests["end_ns"].tolist() == [-1]
    assert early.requests["tokens_out"].tolist() == [3]
    assert early.requests["ttft_ns"][0] > 0
    assert early.requests["tokens_in"].tolist() == [7]
    assert early.requests["rows"].tolist() == [1]
    invariants.check_sequences(early)
    assert late.requests["tokens_out"].tolist() == [6]
    assert late.requests["end_ns"][0] > 0


def test_rows_that_may_have_ended_have_unknown_tokens_until_the_end() -> None:
    early, late = result_at(3, inputs=prompt(2), eos_token_id=1, pad_token_id=PAD)
    assert_is_the_beginning(early, late)
    # All rows commit in the first step; later some may have ended.
    assert early.steps["tokens_committed"].tolist() == [2, -1, -1]
    assert len(early.tokens) == 2
    assert early.requests["tokens_out"].tolist() == [-1]
    assert early.requests["ttft_ns"][0] > 0
    assert late.steps["tokens_committed"].tolist() == [2] * 6


def test_rows_that_cannot_end_early_have_known_tokens_all_along() -> None:
    early, late = result_at(3, inputs=prompt(2))
    assert_is_the_beginning(early, late)
    assert early.steps["tokens_committed"].tolist() == [2, 2, 2]
    assert early.requests["tokens_out"].tolist() == [6]


def test_beams_have_committed_nothing_until_the_end() -> None:
    early, late = result_at(3, inputs=prompt(), num_beams=2)
    assert early.steps["tokens_committed"].tolist() == [0, 0, 0]
    assert len(early.tokens) == 0
    assert early.requests["ttft_ns"].tolist() == [-1]
    assert late.requests["tokens_out"].tolist() == [6]


def test_a_result_between_forward_and_token_leaves_that_step_open() -> None:
    recording = pertoken.profile(llama())
    taken: list[Profile] = []
    handle = llama().register_forward_hook(lambda *_: taken.append(recording.result()))
    try:
        with recording:
            llama().generate(prompt(), max_new_tokens=3)
    finally:
        handle.remove()
    assert [profile.steps["wall_ns"][-1] for profile in taken] == [-1] * 3
    assert [profile.steps["tokens_committed"].tolist() for profile in taken] == [
        [-1],
        [1, -1],
        [1, 1, -1],
    ]
    assert [profile.requests["tokens_out"].tolist() for profile in taken] == [[-1], [1], [2]]


def test_results_taken_from_another_thread_always_agree_with_themselves() -> None:
    model = llama()
    recording = pertoken.profile(model)
    done = threading.Event()

    def serve() -> None:
        try:
            for turn in itertools.count():
                if turn >= 12 and len(results) > 2:
                    break
                with pertoken.request(id=turn):
                    model.generate(prompt(2, seed=turn), max_new_tokens=4)
        finally:
            done.set()

    results: list[Profile] = []
    with recording:
        worker = threading.Thread(target=serve)
        worker.start()
        while not done.wait(0.001):
            results.append(recording.result())
        worker.join()
    results.append(recording.result())
    for profile in results:
        invariants.check_tokens(profile)
        invariants.check_steps(profile)
        requests = set(profile.requests["request"].tolist())
        assert set(profile.steps["request"].tolist()) <= requests
        assert set(profile.tokens["request"].tolist()) <= requests
        ended = profile.requests["end_ns"] >= 0
        assert set(profile.requests["tokens_out"][ended].tolist()) <= {8}
    told = results[-1].requests["tokens_out"].tolist()
    assert len(told) >= 12 and set(told) == {8}
