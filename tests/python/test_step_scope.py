"""`pertoken.step`: what the user says of a step holds, whatever runs inside."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

import invariants
import pertoken
from models import NextToken, Regressor, llama, prompt


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "decoding"},
        {"kind": ""},
        {"rows": -1},
        {"tokens_committed": -2},
        {"rows": 2**40},
        {"rows": 2**24 + 1},
        {"tokens_committed": 2**24 + 1},
        {"tokens_committed": 2**70},
        {"rows": 1.5},
        {"tokens_committed": "1"},
    ],
)
def test_what_cannot_be_a_step_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(pertoken.SelectionError):
        pertoken.step(**arguments)


def test_calls_inside_are_spans_of_the_declared_step() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording:
        with pertoken.step(kind="prefill", rows=2, tokens_committed=2):
            model(prompt(2, 5))
            model(prompt(2, 3))
        model(prompt(1, 4))
    profile = recording.result()
    invariants.check(profile)
    steps = profile.steps
    assert steps["kind"].tolist() == ["prefill", "other"]
    assert steps["rows"].tolist() == [2, 1]
    # Two calls of five and three tokens a row: no one length is that of the step.
    assert steps["tokens_in"].tolist() == [-1, 4]
    assert profile.step_rows["query_len"].tolist() == [-1, -1, 4]
    assert steps["tokens_committed"].tolist() == [2, -1]
    root = profile.spans.where(profile.spans["site"] == "NextToken")
    assert root["step"].tolist() == [0, 0, 1]
    assert set(root["parent"].tolist()) == {-1}
    begin, end = steps["start_ns"][0], steps["start_ns"][0] + steps["wall_ns"][0]
    inside = profile.spans.where(profile.spans["step"] == 0)
    assert len(inside) == 2 * (1 + 4)
    assert begin <= inside["start_ns"].min()
    assert (inside["start_ns"] + inside["dur_ns"]).max() <= end
    assert profile.step_rows["committed"].tolist() == [1, 1, -1]


def test_a_loop_of_declared_steps_in_a_request_gives_its_tokens() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording, pertoken.request(id="loop"):
        with pertoken.step(kind="prefill", rows=2, tokens_committed=2):
            model(prompt(2, 5))
        for _ in range(3):
            with pertoken.step(kind="decode", rows=2, tokens_committed=2):
                model(prompt(2, 1))
        with pertoken.step(kind="verify", rows=2, tokens_committed=6):
            model(prompt(2, 4))
    profile = recording.result()
    invariants.check(profile)
    invariants.check_sequences(profile)
    assert profile.steps["kind"].tolist() == ["prefill"] + ["decode"] * 3 + ["verify"]
    assert profile.requests["tokens_out"].tolist() == [14]
    assert profile.requests["rows"].tolist() == [2]
    assert len(profile.tokens) == 14
    assert sorted(profile.tokens["position"].tolist()) == sorted([0, 1, 2, 3, 4, 5, 6] * 2)


def test_a_number_that_does_not_divide_is_known_of_the_step_and_not_of_its_rows() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)
    declared = pertoken.step(kind="verify", rows=2, tokens_committed=3)
    with torch.no_grad(), recording, pertoken.request(), declared:
        model(prompt(2, 4))
    profile = recording.result()
    assert profile.steps["tokens_committed"].tolist() == [3]
    assert profile.step_rows["committed"].tolist() == [-1, -1]
    assert profile.requests["tokens_out"].tolist() == [3]
    assert len(profile.tokens) == 0


def test_undeclared_rows_are_those_of_the_forward_and_tokens_stay_unknown() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording, pertoken.step():
        model(prompt(2, 4))
    profile = recording.result()
    assert profile.steps["kind"].tolist() == ["other"]
    assert profile.steps["rows"].tolist() == [2]
    assert profile.steps["tokens_in"].tolist() == [8]
    assert profile.steps["tokens_committed"].tolist() == [-1]


def test_of_several_forwards_only_what_was_declared_holds() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording, pertoken.step():
        model(prompt(2, 4))
        model(prompt(1, 4))
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["rows"].tolist() == [-1]
    assert profile.steps["tokens_in"].tolist() == [-1]
    assert len(profile.step_rows) == 0


def test_a_step_round_work_that_no_recording_sees_is_noted_by_itself() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)
    with recording, pertoken.request(id="elsewhere"):
        for count in (3, 1):
            with pertoken.step(kind="decode", rows=3, tokens_committed=count * 3):
                sum(range(100))
    profile = recording.result()
    invariants.check(profile)
    invariants.check_sequences(profile)
    assert profile.steps["kind"].tolist() == ["decode", "decode"]
    assert profile.steps["rows"].tolist() == [3, 3]
    assert profile.steps["request"].tolist() == [0, 0]
    assert profile.requests["id"].tolist() == ["elsewhere"]
    assert profile.requests["tokens_out"].tolist() == [12]
    assert len(profile.spans) == 0


def test_of_two_recordings_only_that_whose_model_runs_notes_the_step() -> None:
    first, second = NextToken().eval(), Regressor().eval()
    one, other = pertoken.profile(first), pertoken.profile(second)
    with torch.no_grad(), one, other:
        with pertoken.step(kind="decode"):
            first(prompt(1, 1))
        with pertoken.step(kind="mixed"):
            pass
    assert one.result().steps["kind"].tolist() == ["decode", "mixed"]
    assert other.result().steps["kind"].tolist() == ["mixed"]


def test_a_step_that_raises_is_closed_and_failed() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)
    error = ValueError("mine")
    with torch.no_grad(), recording:
        with pytest.raises(ValueError) as caught, pertoken.step(kind="decode", tokens_committed=1):
            model(prompt(1, 1))
            raise error
        model(prompt(1, 2))
    assert caught.value is error
    profile = recording.result()
    assert profile.steps["error"].tolist() == ["exception", ""]
    assert profile.steps["kind"].tolist() == ["decode", "other"]
    assert (profile.steps["wall_ns"] > 0).all()


def test_a_step_that_raises_commits_nothing() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording, pertoken.request():
        with pytest.raises(KeyError), pertoken.step("decode", rows=1, tokens_committed=4):
            model(prompt(1, 3))
            raise KeyError
        with pertoken.step("decode", rows=1, tokens_committed=1):
            model(prompt(1, 1))
    profile = recording.result()
    invariants.check(profile)
    invariants.check_sequences(profile)
    assert profile.steps["tokens_committed"].tolist() == [0, 1]
    assert profile.tokens["step"].tolist() == [1] and profile.tokens["position"].tolist() == [0]
    assert profile.requests["tokens_out"].tolist() == [1]
    assert profile.totals is not None
    assert profile.totals.steps["decode"].tokens_committed == 1


def test_a_step_round_generate_is_one_step() -> None:
    recording = pertoken.profile(llama())
    with recording, pertoken.step(kind="mixed", rows=2, tokens_committed=8):
        llama().generate(prompt(2), max_new_tokens=4)
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["kind"].tolist() == ["mixed"]
    assert profile.steps["tokens_committed"].tolist() == [8]
    assert profile.requests["tokens_out"].tolist() == [8]
    assert profile.requests["ttft_ns"][0] > 0
    root = profile.spans.where(profile.spans["site"] == "LlamaForCausalLM")
    assert root["step"].tolist() == [0] * 4


def test_a_step_round_generate_that_says_no_number_leaves_it_unknown() -> None:
    recording = pertoken.profile(llama())
    with recording, pertoken.step(kind="mixed", rows=2):
        llama().generate(prompt(2), max_new_tokens=4, num_beams=2)
    profile = recording.result()
    assert profile.steps["tokens_committed"].tolist() == [-1]
    assert len(profile.tokens) == 0
    assert profile.requests["tokens_out"].tolist() == [8]


def test_steps_of_tasks_that_interleave_do_not_cross() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)

    async def turn(kind: str, rows: int) -> None:
        with pertoken.step(kind=kind, rows=rows):
            await asyncio.sleep(0)
            with torch.no_grad():
                model(prompt(rows, 2))
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(turn("prefill", 1), turn("decode", 2))

    with recording:
        asyncio.run(both())
    profile = recording.result()
    invariants.check(profile)
    assert sorted(profile.steps["kind"].tolist()) == ["decode", "prefill"]
    root = profile.spans.where(profile.spans["site"] == "NextToken")
    assert sorted(root["step"].tolist()) == [0, 1]


def test_without_a_recording_a_step_does_nothing() -> None:
    with pertoken.step(kind="decode", rows=1, tokens_committed=1), pertoken.request(id="x"):
        NextToken()(prompt(1, 2))
