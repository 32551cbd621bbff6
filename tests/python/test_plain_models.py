"""Models that transformers' generate knows nothing of: rows and lengths, and never a kind."""

from __future__ import annotations

import contextlib

import torch

import invariants
import pertoken
from models import NextToken, Regressor, bert, left_padded, prompt


def test_a_plain_model_that_takes_ids_has_rows_and_lengths() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording:
        model(prompt(3, 5))
        model(idx=prompt(2, 4))
        model(prompt(1, 6)[0])
    profile = recording.result()
    invariants.check(profile)
    steps = profile.steps
    assert steps["kind"].tolist() == ["other"] * 3
    assert steps["rows"].tolist() == [3, 2, 1]
    assert steps["tokens_in"].tolist() == [15, 8, 6]
    assert steps["context_len"].tolist() == [-1] * 3
    assert steps["tokens_committed"].tolist() == [-1] * 3
    assert profile.step_rows["query_len"].tolist() == [5, 5, 5, 4, 4, 6]
    assert len(profile.requests) == len(profile.tokens) == 0
    layers = profile.spans.where(profile.spans["site"] == "layers.1")
    assert layers["step"].tolist() == [0, 1, 2]


def test_a_model_of_numbers_has_rows_and_no_lengths() -> None:
    model = Regressor().eval()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording:
        model(torch.randn(4, 6))
        model(x=torch.randn(2, 3, 6))
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["kind"].tolist() == ["other"] * 2
    assert profile.steps["rows"].tolist() == [4, 2]
    assert profile.steps["tokens_in"].tolist() == [-1, -1]
    assert set(profile.step_rows["query_len"].tolist()) == {-1}


def test_inputs_without_a_shape_leave_rows_unknown() -> None:
    class Adder(torch.nn.Module):
        def forward(self, *numbers: float, **named: float) -> float:
            return sum(numbers) + sum(named.values())

    model = Adder()
    recording = pertoken.profile(model, modules="root")
    with recording:
        assert model() == 0
        assert model(1.0, 2.0) == 3.0
        assert model(a=1.0) == 1.0
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["rows"].tolist() == [-1] * 3
    assert profile.steps["tokens_in"].tolist() == [-1] * 3
    assert len(profile.step_rows) == 0


def test_an_encoder_is_other() -> None:
    ids, mask = left_padded([7, 4])
    recording = pertoken.profile(bert())
    with torch.no_grad(), recording:
        bert()(ids.flip(1), attention_mask=mask.flip(1))
        bert()(input_ids=prompt(1, 9))
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["kind"].tolist() == ["other", "other"]
    assert profile.steps["rows"].tolist() == [2, 1]
    assert profile.steps["tokens_in"].tolist() == [14, 9]
    assert profile.steps["context_len"].tolist() == [0, 0]
    assert profile.step_rows["query_len"].tolist() == [7, 4, 9]


def test_a_step_that_failed_is_a_step() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording:
        for ids in (prompt(2, 3), torch.tensor([[10**6]]), prompt(1, 2)):
            with contextlib.suppress(IndexError):
                model(ids)
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["error"].tolist() == ["", "exception", ""]
    assert profile.steps["rows"].tolist() == [2, 1, 1]
    root = profile.spans.where(profile.spans["site"] == "NextToken")
    assert root["step"].tolist() == [0, 1, 2]
    assert recording.totals().steps["other"].failed == 1
