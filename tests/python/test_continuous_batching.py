"""transformers' continuous batching: rows, requests and tokens against a log kept independently."""

from __future__ import annotations

import copy
import pickle
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import (
    continuous_api,
    model_runner,
    requests,
    scheduler,
)

import invariants
import pertoken
from batching_log import BatchingLog, logged
from held_forwards import Held
from models import VOCABULARY, llama
from pertoken import Profile
from residue import foreign_values, state_of
from waiting import PATIENCE_S, wait_for

CLASSES = (
    continuous_api.ContinuousBatchingManager,
    continuous_api.ContinuousBatchProcessor,
    continuous_api.OutputRouter,
    model_runner.ModelRunner,
    requests.RequestState,
    scheduler.Scheduler,
)


def settings(**given: Any) -> GenerationConfig:
    return GenerationConfig(
        **{"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0, **given}
    )


def batching(**given: Any) -> ContinuousBatchingConfig:
    sizes = {"page_size": 4, "num_blocks": 64, "max_batch_tokens": 16}
    return ContinuousBatchingConfig(**{**sizes, **given})


def prompts(count: int, seed: int = 0, longest: int = 24) -> list[list[int]]:
    drawn = random.Random(seed)
    return [
        [drawn.randrange(1, VOCABULARY) for _ in range(drawn.randrange(1, longest))]
        for _ in range(count)
    ]


def outputs(results: dict[str, Any]) -> dict[str, list[int]]:
    return {name: output.generated_tokens for name, output in results.items()}


def check(profile: Profile, log: BatchingLog) -> None:
    """Asserts that the profile says what the log says, all of it."""
    invariants.check(profile)
    invariants.check_sequences_of_requests(profile)
    rows, steps, tokens = profile.step_rows, profile.steps, profile.tokens
    numbers, names = profile.requests["request"].tolist(), profile.requests["id"].tolist()
    name_of = dict(zip(numbers, names, strict=True))
    columns = ("step", "row", "request", "phase", "query_len", "context_len", "committed")
    told = zip(*(rows[name].tolist() for name in columns), strict=True)
    assert [(s, r, name_of[q], *rest) for s, r, q, *rest in told] == log.rows()
    assert steps["kind"].tolist() == log.kinds()
    fed = [sum(row.query_len for row in logged_rows) for logged_rows in log.steps]
    assert steps["tokens_in"].tolist() == fed
    given = dict(zip(names, profile.requests["tokens_out"].tolist(), strict=True))
    assert {name: count for name, count in given.items() if count} == log.tokens
    assert len(tokens) == sum(log.tokens.values())
    assert profile.losses["reasons"] == []


def attributes_of(cls: type) -> dict[str, Any]:
    return {key: value for key, value in vars(cls).items() if key != "__slotnames__"}  # of copy


@pytest.fixture
def model() -> Iterator[Any]:
    """A model of which nothing differs when the test is over, nor of transformers' classes."""
    model = copy.deepcopy(llama())
    before = state_of(model), [attributes_of(cls) for cls in CLASSES]
    yield model
    assert foreign_values(model) == []
    assert (state_of(model), [attributes_of(cls) for cls in CLASSES]) == before


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ({}, {}),
        ({"scheduler_type": "prefill_first"}, {}),
        ({"allow_block_sharing": False, "max_batch_tokens": 7}, {}),
        ({"max_requests_per_batch": 2}, {"max_new_tokens": 1}),
        ({}, {"eos_token_id": 34}),
        ({}, {"num_return_sequences": 3, "do_sample": True, "top_k": 1}),
        ({"num_blocks": 12, "safety_margin": 0.0}, {"max_new_tokens": 16}),
        ({"return_logprobs": True}, {"do_sample": True, "top_k": 1}),
    ],
    ids=[
        "fifo",
        "prefill_first",
        "chunked",
        "one_token",
        "eos",
        "sequences",
        "full_cache",
        "sample",
    ],
)
def test_rows_requests_and_tokens_are_those_of_the_scheduler(
    model: Any,
    config: dict[str, Any],
    generation: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = prompts(7)
    inputs.append([*inputs[0], 5, 6])  # a prefix that may be shared
    recording = pertoken.profile(model)
    results = []
    for context in (None, recording):
        with logged(model, monkeypatch) as log:
            if context is not None:
                context.start()
            results.append(
                model.generate_batch(
                    inputs,
                    generation_config=settings(**generation),
                    continuous_batching_config=batching(**config),
                )
            )
            recording.stop()
    assert outputs(results[0]) == outputs(results[1])
    profile = recording.result()
    check(profile, log)
    sequences = generation.get("num_return_sequences", 1)
    assert len(profile.requests) == len(inputs) * sequences
    lengths = {f"req_{number}": len(ids) for number, ids in enumerate(inputs)}
    for name, tokens_in, tokens_out, error in zip(
        *(profile.requests[key].tolist() for key in ("id", "tokens_in", "tokens_out", "error")),
        strict=True,
    ):
        assert tokens_in == lengths[name.partition("__")[0]]
        assert tokens_out == len(results[1][name].generated_tokens)
        assert error == ""
    assert (profile.requests["end_ns"] > 0).all()


def test_eager_attention_gives_the_same_rows(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.set_attn_implementation("eager")
    recording = pertoken.profile(model, modules="root")
    with logged(model, monkeypatch) as log, recording:
        model.generate_batch(
            prompts(4), generation_config=settings(), continuous_batching_config=batching()
        )
    check(recording.result(), log)
    model.set_attn_implementation("sdpa")


def collected(manager: Any, count: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(results) < count and time.monotonic() < deadline:
        output = manager.get_result(timeout=0.5)
        if output is not None and output.is_finished():
            results[output.request_id] = output
    return results


@pytest.mark.parametrize("seed", range(3))
def test_requests_that_arrive_finish_and_are_cancelled_at_any_time(
    model: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = random.Random(seed)
    inputs = prompts(12, seed, longest=40)
    wanted = {f"r{number}": drawn.randrange(1, 12) for number in range(len(inputs))}
    long_ones = ["r2", "r7"]
    recording = pertoken.profile(model)
    managed = model.continuous_batching_context_manager(
        generation_config=settings(), continuous_batching_config=batching(num_blocks=256)
    )
    with (
        Held(model, at=40) as held,  # what is long is not done when it is cancelled
        logged(model, monkeypatch) as log,
        recording,
        managed as manager,
    ):

        def add(names: list[str]) -> None:
            own = random.Random(names[0])
            for name in names:
                time.sleep(own.random() * 0.004)
                count = 60 if name in long_ones else wanted[name]
                with pertoken.request(id="ignored", model_version="v1", tenant=f"t-{name}"):
                    manager.add_request(
                        inputs[int(name[1:])], request_id=name, max_new_tokens=count
                    )

        names = list(wanted)
        adders = [threading.Thread(target=add, args=(names[at::2],)) for at in range(2)]
        for adder in adders:
            adder.start()
        for adder in adders:
            adder.join()
        for name in long_ones:
            manager.cancel_request(name)
        manager.cancel_request("unheard of")
        held.go_on()
        results = collected(manager, len(wanted) - len(long_ones))
    profile = recording.result()
    check(profile, log)
    by_name = {
        name: rest
        for name, *rest in zip(
            *(
                profile.requests[key].tolist()
                for key in ("id", "model_version", "label.tenant", "tokens_in", "error", "end_ns")
            ),
            strict=True,
        )
    }
    assert set(by_name) == set(wanted)
    for name, (version, tenant, tokens_in, error, end_ns) in by_name.items():
        assert (version, tenant) == ("v1", f"t-{name}")
        assert tokens_in == len(inputs[int(name[1:])])
        assert error == ("cancelled" if name in long_ones else "")
        assert end_ns > 0
    for name, output in results.items():
        assert len(output.generated_tokens) == wanted[name] == log.tokens[name]


def test_a_failing_forward_fails_its_requests_by_name(model: Any) -> None:
    calls = []

    def explode(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise FloatingPointError("no luck")

    hook = model.register_forward_pre_hook(explode)
    recording = pertoken.profile(model)
    with recording:
        manager = model.init_continuous_batching(settings(), batching(max_batch_tokens=64))
        manager.start()
        manager.add_requests(prompts(3), max_new_tokens=6)
        results = collected(manager, 3)
        manager.stop(block=True)
        manager.destroy()
    hook.remove()
    profile = recording.result()
    invariants.check(profile)
    assert len(results) == 3
    assert profile.requests["error"].tolist() == ["FloatingPointError"] * 3
    assert profile.steps["error"].tolist()[-1] == "exception"
    assert profile.steps["tokens_committed"].tolist()[-1] == 0
    counts = {name: len(output.generated_tokens) for name, output in results.items()}
    given = dict(
        zip(profile.requests["id"].tolist(), profile.requests["tokens_out"].tolist(), strict=True)
    )
    assert given == counts


def test_recordings_start_and_stop_while_the_manager_runs(model: Any) -> None:
    inputs = prompts(10)
    expected = outputs(
        model.generate_batch(
            inputs,
            generation_config=settings(max_new_tokens=40),
            continuous_batching_config=batching(num_blocks=256, max_batch_tokens=64),
        )
    )
    recordings = [pertoken.profile(model), pertoken.profile(model, modules="root")]
    managed = model.continuous_batching_context_manager(
        settings(max_new_tokens=40),
        continuous_batching_config=batching(num_blocks=256, max_batch_tokens=64),
    )
    with Held(model, at=sys.maxsize) as forwards, managed as manager:
        for number, ids in enumerate(inputs):
            recording = recordings[number % 2]
            recording.start()
            before = forwards.count
            manager.add_request(ids, request_id=f"req_{number}")
            wait_for(lambda: forwards.count >= before + 2)  # noqa: B023
            if number % 3:
                recording.stop()
        results = collected(manager, len(inputs))
    for recording in recordings:
        recording.stop()
    assert outputs(results) == {name: expected[name] for name in results}
    assert len(results) == len(inputs)
    for recording in recordings:
        profile = recording.result()
        invariants.check_steps(profile)
        invariants.check_tokens(profile)
        assert profile.losses["faults"] == {}
        assert profile.losses["records_dropped"] == 0
        assert len(profile.steps) > 0
        assert set(profile.steps["kind"].tolist()) <= {"prefill", "decode", "mixed"}
        # Nothing is claimed of what was not seen: positions are right or unknown.
        names = dict(
            zip(profile.requests["request"].tolist(), profile.requests["id"].tolist(), strict=True)
        )
        for request, position, latency in zip(
            *(profile.tokens[key].tolist() for key in ("request", "position", "itl_ns")),
            strict=True,
        ):
            assert position < 40 and request in names and latency >= -1
        known = profile.requests.where(profile.requests["tokens_out"] >= 0)
        assert set(known["tokens_out"].tolist()) <= set(range(41))


def test_a_recording_that_begins_in_the_middle_says_so(model: Any) -> None:
    recording = pertoken.profile(model)
    managed = model.continuous_batching_context_manager(
        settings(max_new_tokens=90), continuous_batching_config=batching(num_blocks=256)
    )
    with Held(model, at=40) as held, managed as manager:
        manager.add_request([1, 2, 3], request_id="before", streaming=True)
        assert manager.get_result(timeout=PATIENCE_S) is not None
        with recording:
            held.go_on()
            manager.add_request([4, 5], request_id="inside", max_new_tokens=3)
            collected(manager, 2)
    profile = recording.result()
    invariants.check(profile)
    before, inside = (
        profile.requests.where(profile.requests["id"] == name) for name in ("before", "inside")
    )
    assert before["ttft_ns"].tolist() == before["tokens_out"].tolist() == [-1]
    assert before["tokens_in"].tolist() == [3]
    assert inside["tokens_out"].tolist() == [3]
    assert (inside["ttft_ns"] > 0).all()
    (reason,) = profile.losses["reasons"]
    assert "1 request of an engine may have begun before" in reason


def test_other_models_and_copies_know_nothing(model: Any) -> None:
    other = copy.deepcopy(llama(1))
    recording = pertoken.profile(model)
    with recording:
        copied = pickle.loads(pickle.dumps(model))
        for unrecorded in (other, copied):
            unrecorded.generate_batch(
                prompts(2), generation_config=settings(), continuous_batching_config=batching()
            )
    profile = recording.result()
    assert len(profile.steps) == len(profile.requests) == 0
    assert profile.losses["faults"] == {}


def test_a_persistent_manager_serves_several_recordings(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        recording = pertoken.profile(model)
        with logged(model, monkeypatch) as log, recording:
            model.generate_batch(
                prompts(3),
                generation_config=settings(),
                continuous_batching_config=batching(),
                persistent_manager=True,
            )
        check(recording.result(), log)
    model.destroy_cached_continuous_batching_manager()


def test_another_transformers_is_named_and_nothing_is_guessed(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = continuous_api.ContinuousBatchProcessor.update_batch
    recording = pertoken.profile(model)
    monkeypatch.delattr(continuous_api.ContinuousBatchProcessor, "update_batch")
    monkeypatch.setattr(continuous_api.ContinuousBatchProcessor, "advance", original, raising=False)

    def body(self: Any, processor: Any, bootstrapping: bool) -> bool:
        if processor.prepare_next_batch():
            self._generation_step()
            processor.advance()
            return True
        return self.background_thread_status.tp_status == 0

    monkeypatch.setattr(continuous_api.ContinuousBatchingManager, "_generation_loop_body", body)
    with recording:
        results = model.generate_batch(
            prompts(2), generation_config=settings(), continuous_batching_config=batching()
        )
    monkeypatch.undo()
    assert len(results) == 2
    profile = recording.result()
    assert set(profile.steps["kind"].tolist()) == {"other"}
    assert len(profile.requests) == len(profile.tokens) == 0
    (reason,) = profile.losses["reasons"]
    assert "no ContinuousBatchProcessor.update_batch" in reason


def test_the_summary_and_the_trace_take_mixed_steps(model: Any, tmp_path: Any) -> None:
    recording = pertoken.profile(model)
    with recording:
        model.generate_batch(
            prompts(6), generation_config=settings(), continuous_batching_config=batching()
        )
    profile = recording.result()
    profile.save(tmp_path / "run.pertoken")
    text = str(pertoken.load(tmp_path / "run.pertoken").summary())
    assert "step, mixed" in text
    assert "inter-token latency" in text
    profile.export_chrome_trace(tmp_path / "trace.json")
    assert "mixed" in (tmp_path / "trace.json").read_text()


def test_a_recording_from_before_transformers_was_imported_is_no_hindrance(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pertoken.profile(copy.deepcopy(llama()))
    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, continuous_api.__name__)
        first.start()
    with first, pertoken.profile(model) as second:
        model.generate_batch(
            prompts(2), generation_config=settings(), continuous_batching_config=batching()
        )
    assert second.result().requests["tokens_out"].tolist() == [6, 6]
    assert len(first.result().requests) == 0
