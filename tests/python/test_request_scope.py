"""`pertoken.request`: what runs inside belongs to it, and only that."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from transformers import DynamicCache

import invariants
import pertoken
from models import llama, prompt
from waiting import PATIENCE_S


def test_two_generations_in_one_request_are_one_request() -> None:
    model = llama()
    recording = pertoken.profile(model)
    with recording, pertoken.request(id="chat", tenant="a", tier=2):
        model.generate(prompt(2, 7), max_new_tokens=3)
        model.generate(prompt(1, 5), max_new_tokens=4)
    profile = recording.result()
    invariants.check(profile)
    invariants.check_tiled(profile, "LlamaForCausalLM")
    requests, steps, tokens = profile.requests, profile.steps, profile.tokens
    assert requests["id"].tolist() == ["chat"]
    assert requests["label.tenant"].tolist() == ["a"]
    assert requests["label.tier"].tolist() == ["2"]
    assert requests["tokens_in"].tolist() == [14 + 5]
    assert requests["tokens_out"].tolist() == [6 + 4]
    assert requests["rows"].tolist() == [3]
    assert set(steps["request"].tolist()) == {0}
    assert steps["kind"].tolist() == ["prefill"] + ["decode"] * 2 + ["prefill"] + ["decode"] * 3
    assert requests["ttft_ns"][0] == tokens["commit_ns"].min() - requests["start_ns"][0]
    begin, end = requests["start_ns"][0], requests["end_ns"][0]
    assert begin < steps["start_ns"][0]
    assert steps["start_ns"][-1] + steps["wall_ns"][-1] < end


def test_requests_without_labels_have_empty_ones() -> None:
    recording = pertoken.profile(llama())
    with recording:
        with pertoken.request(id="a", tenant="x"):
            llama().generate(prompt(), max_new_tokens=1)
        llama().generate(prompt(), max_new_tokens=1)
        with pertoken.request(model_version="v3"):
            llama().generate(prompt(), max_new_tokens=1)
    requests = recording.result().requests
    assert requests["id"].tolist() == ["a", "", ""]
    assert requests["label.tenant"].tolist() == ["x", "", ""]
    assert requests["model_version"].tolist() == ["", "", "v3"]


def test_one_object_entered_again_is_another_request() -> None:
    recording = pertoken.profile(llama())
    scope = pertoken.request(id="again")
    with recording:
        for count in (1, 2):
            with scope:
                llama().generate(prompt(), max_new_tokens=count)
    requests = recording.result().requests
    assert requests["id"].tolist() == ["again", "again"]
    assert requests["tokens_out"].tolist() == [1, 2]
    assert (requests["end_ns"] > requests["start_ns"]).all()
    assert requests["start_ns"][1] >= requests["end_ns"][0]


def test_one_object_entered_in_two_threads_is_two_requests() -> None:
    recording = pertoken.profile(llama())
    scope = pertoken.request(id="shared")
    both_inside = threading.Barrier(2)

    def serve(count: int) -> None:
        with scope:
            both_inside.wait(PATIENCE_S)
            llama().generate(prompt(), max_new_tokens=count)

    with recording:
        workers = [threading.Thread(target=serve, args=(count,)) for count in (2, 5)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    profile = recording.result()
    invariants.check(profile)
    assert sorted(profile.requests["tokens_out"].tolist()) == [2, 5]
    assert (profile.requests["end_ns"] > 0).all()


def test_the_inner_of_nested_requests_takes_what_runs_in_it() -> None:
    recording = pertoken.profile(llama())
    with recording, pertoken.request(id="outer"):
        llama().generate(prompt(), max_new_tokens=1)
        with pertoken.request(id="inner"):
            llama().generate(prompt(), max_new_tokens=2)
        llama().generate(prompt(), max_new_tokens=3)
    requests = recording.result().requests
    assert dict(zip(requests["id"].tolist(), requests["tokens_out"].tolist(), strict=True)) == {
        "outer": 4,
        "inner": 2,
    }


def test_an_exception_is_named_and_passes() -> None:
    recording = pertoken.profile(llama())
    error = RuntimeError("mine")
    with recording:
        with pytest.raises(RuntimeError) as caught, pertoken.request(id="a"):
            llama().generate(prompt(), max_new_tokens=2)
            raise error
        with pertoken.request(id="b"):
            llama().generate(prompt(), max_new_tokens=2)
    assert caught.value is error
    requests = recording.result().requests
    assert requests["error"].tolist() == ["RuntimeError", ""]
    assert requests["tokens_out"].tolist() == [2, 2]


def test_generate_and_a_loop_by_hand_share_a_request() -> None:
    model = llama()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording, pertoken.request(id="mixed"):
        model.generate(prompt(), max_new_tokens=2)
        cache = DynamicCache(config=model.config)
        model(prompt(), past_key_values=cache)
        model(prompt(1, 1), past_key_values=cache)
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["kind"].tolist() == ["prefill", "decode"] * 2
    assert set(profile.steps["request"].tolist()) == {0}
    assert profile.steps["tokens_committed"].tolist() == [1, 1, -1, -1]
    assert profile.requests["tokens_out"].tolist() == [-1]
    assert profile.requests["ttft_ns"][0] > 0


def test_a_request_without_steps_is_not_in_the_tables() -> None:
    recording = pertoken.profile(llama())
    with recording, pertoken.request(id="idle"):
        pass
    assert len(recording.result().requests) == 0


def test_requests_of_tasks_that_interleave_do_not_cross() -> None:
    model = llama()
    recording = pertoken.profile(model)

    async def serve(count: int) -> None:
        with pertoken.request(id=count):
            for _ in range(count):
                await asyncio.sleep(0)
                model.generate(prompt(), max_new_tokens=count)

    async def all_of_them() -> None:
        await asyncio.gather(*(serve(count) for count in (1, 2, 3)))

    with recording:
        asyncio.run(all_of_them())
    profile = recording.result()
    invariants.check(profile)
    requests = profile.requests
    assert dict(zip(requests["id"].tolist(), requests["tokens_out"].tolist(), strict=True)) == {
        "1": 1,
        "2": 4,
        "3": 9,
    }


def test_a_task_that_outlives_its_request_belongs_to_it_no_longer() -> None:
    model = llama()
    recording = pertoken.profile(model)

    async def later(release: asyncio.Event) -> None:
        await release.wait()
        model.generate(prompt(), max_new_tokens=2)

    async def main() -> None:
        release = asyncio.Event()
        with pertoken.request(id="short"):
            model.generate(prompt(), max_new_tokens=1)
            task = asyncio.create_task(later(release))
        release.set()
        await task

    with recording:
        asyncio.run(main())
    requests = recording.result().requests
    assert requests["id"].tolist() == ["short", ""]
    assert requests["tokens_out"].tolist() == [1, 2]


def test_two_recordings_number_requests_by_themselves() -> None:
    model = llama()
    first, second = pertoken.profile(model), pertoken.profile(model)
    with first:
        model.generate(prompt(), max_new_tokens=1)
        with second, pertoken.request(id="both"):
            model.generate(prompt(), max_new_tokens=2)
    assert first.result().requests["id"].tolist() == ["", "both"]
    assert second.result().requests["id"].tolist() == ["both"]
    assert second.result().requests["tokens_out"].tolist() == [2]
